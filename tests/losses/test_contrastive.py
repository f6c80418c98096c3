"""Every way to compute the contrastive losses, over ranks, beside one process that goes pair by pair."""

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contrastive_reference import sigmoid_reference, softmax_reference
from gloo import run_gloo
from torch import Tensor, nn

from vlm.distributed import Topology, collectives, split_ranks
from vlm.losses import IMPLEMENTATIONS, HardNegatives, equal_caption_share, info_nce, sigmoid_loss, tiled

PAIRS, HARD, DIM = 8, 3, 5
KINDS = ("softmax", "sigmoid")


class Towers(nn.Module):
    """Two linear towers, a scale and a bias, the same on every rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(4, DIM, dtype=torch.float64)
        self.text = nn.Linear(4, DIM, dtype=torch.float64)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(7.0)], dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor([-1.5], dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            F.normalize(self.image(x), dim=-1),
            F.normalize(self.text(y), dim=-1),
            F.normalize(self.text(z), dim=-1),
        )


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, 4, generator=generator, dtype=torch.float64)

    present = torch.rand(PAIRS, HARD, generator=generator) < 0.7
    present[2] = False
    ids = torch.tensor([0, 1, 2, 1, 3, 0, 4, 1])
    return {"x": draw(PAIRS), "y": draw(PAIRS), "z": draw(PAIRS, HARD), "present": present, "ids": ids}


@cache
def reference(
    kind: str, *, masked: bool, scope: str | None, first: int = 0, last: int = PAIRS
) -> dict[str, Tensor]:
    """Loss and gradients of one process, over some of the pairs."""
    towers, rows = Towers(), {name: value[first:last] for name, value in data().items()}
    image, text, hard = towers(rows["x"], rows["y"], rows["z"])
    ids = rows["ids"] if masked else None
    negatives = (hard, rows["present"], scope) if scope else None
    scale = towers.logit_scale.exp()
    if kind == "softmax":
        loss = softmax_reference(image, text, scale, ids, negatives)
    else:
        loss = sigmoid_reference(image, text, scale, towers.logit_bias, ids, negatives)
    loss.backward()
    return {"loss": loss.detach(), **gradients(towers)}


def gradients(towers: Towers) -> dict[str, Tensor]:
    return {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}


def one_rank(case: dict[str, Any]) -> dict[str, Tensor]:
    """This rank's loss and gradients, averaged over ranks as data parallelism does."""
    topology, towers = Topology.current(), Towers()
    rows = {name: value.chunk(topology.world_size)[topology.rank] for name, value in data().items()}
    image, text, hard = towers(rows["x"], rows["y"], rows["z"])
    options: dict[str, Any] = {
        "logit_scale": towers.logit_scale.exp(),
        "implementation": case["implementation"],
        "caption_id": rows["ids"] if case.get("masked") else None,
        "tile": case.get("tile", 3),
        "group": split_ranks(case.get("group_size"), key="objective.group_size"),
    }
    if scope := case.get("scope"):
        options["negatives"] = HardNegatives(text=hard, present=rows["present"], scope=scope)
    if case["kind"] == "softmax":
        loss = info_nce(image, text, **options)
    else:
        loss = sigmoid_loss(image, text, logit_bias=towers.logit_bias, **options)
    loss.backward()
    result = {"loss": loss.detach(), **gradients(towers)}
    for value in result.values():
        if topology.world_size > 1:
            torch.distributed.all_reduce(value)
        value /= topology.world_size
    return result


CASES = [
    {"kind": kind, "implementation": implementation, "masked": masked, "scope": scope, "tile": tile}
    for kind, implementation, masked, scope in itertools.product(
        KINDS, IMPLEMENTATIONS, [False, True], [None, "own", "all"]
    )
    for tile in ([1, 3, 100] if implementation == "tiled" else [1])
]
GROUPED = [
    {"kind": kind, "implementation": implementation, "group_size": size, "masked": True, "scope": "all"}
    for kind, implementation, size in itertools.product(KINDS, IMPLEMENTATIONS, (1, 2, 4))
]


def every_case() -> list[dict[str, Tensor]]:
    """One start of the processes for all of them, as that is what takes the time."""
    cases = [*CASES, *(GROUPED if Topology.current().world_size == 4 else [])]
    return [one_rank(case) for case in cases]


@pytest.fixture(scope="module")
def found_on_four(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor]]]:
    return run_gloo(every_case, 4, tmp_path_factory.mktemp("four"))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], about: object) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{about} {n}: {m}"
        )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_averages_over_ranks_equal_one_process(
    world_size: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ranks = [every_case()]
    if world_size > 1:
        four = world_size == 4
        ranks = request.getfixturevalue("found_on_four") if four else run_gloo(every_case, 2, tmp_path)
    for results in ranks:
        for case, found in zip(CASES, results[: len(CASES)], strict=True):
            expected = reference(case["kind"], masked=case["masked"], scope=case["scope"])
            assert_equal(found, expected, case)


def test_grouped_is_the_mean_over_groups(found_on_four: list[list[dict[str, Tensor]]]) -> None:
    for case, found in zip(GROUPED, found_on_four[0][len(CASES) :], strict=True):
        size = case["group_size"] * PAIRS // 4
        groups = [
            reference(case["kind"], masked=True, scope="all", first=first, last=first + size)
            for first in range(0, PAIRS, size)
        ]
        mean = {name: sum(group[name] for group in groups) / len(groups) for name in groups[0]}
        assert_equal(found, mean, case)


def dense_gather_without_its_backward(patch: pytest.MonkeyPatch) -> dict[str, str]:
    def own_share(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.group.size)[ctx.group.rank], None

    patch.setattr(collectives._GatherRows, "backward", staticmethod(own_share))
    return {"kind": "softmax", "implementation": "dense"}


def local_rows_gather_without_its_backward(patch: pytest.MonkeyPatch) -> dict[str, str]:
    dense_gather_without_its_backward(patch)
    return {"kind": "sigmoid", "implementation": "local_rows"}


def tiles_without_the_merge_of_columns(patch: pytest.MonkeyPatch) -> dict[str, str]:
    patch.setattr(tiled, "logsumexp_over_ranks", lambda x, group: x)
    return {"kind": "softmax", "implementation": "tiled"}


def scale_in_every_tile(patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Σ weight · cosine of what is summed so far, taken after each tile and not once after all."""
    backward = tiled._Logits.backward

    def repeated(self: Any, weights: Any) -> tuple[Tensor, ...]:
        tiles = list(weights)
        scales = [backward(self, iter(tiles[: number + 1]))[2] for number in range(len(tiles))]
        rows, columns, _, bias = backward(self, iter(tiles))
        return rows, columns, torch.stack(scales).sum(0), bias

    patch.setattr(tiled._Logits, "backward", repeated)
    return {"kind": "sigmoid", "implementation": "tiled"}


PLANTED = {
    dense_gather_without_its_backward: "image.weight",
    local_rows_gather_without_its_backward: "text.weight",
    tiles_without_the_merge_of_columns: "loss",
    scale_in_every_tile: "logit_scale",
}
"""Bugs, and what shows each."""


def with_each_bug() -> list[tuple[str, dict[str, Tensor]]]:
    found = []
    for plant in PLANTED:
        with pytest.MonkeyPatch.context() as patch:
            case = plant(patch)
            found.append((case["kind"], one_rank(case)))
    return found


def test_planted_bugs_are_noticed(tmp_path: Path) -> None:
    for (bug, shows_in), (kind, found) in zip(
        PLANTED.items(), run_gloo(with_each_bug, 2, tmp_path)[0], strict=True
    ):
        expected = reference(kind, masked=False, scope=None)
        with pytest.raises(AssertionError, match="not close"):
            assert_equal({shows_in: found[shows_in]}, {shows_in: expected[shows_in]}, bug)


def test_equal_captions_are_counted() -> None:
    ids = data()["ids"]
    pairs = sum(int(ids[i] == ids[j]) for i in range(PAIRS) for j in range(PAIRS) if i != j)
    assert equal_caption_share(ids) == pytest.approx(pairs / (PAIRS * (PAIRS - 1)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_features_are_summed_in_single_precision(implementation: str) -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(64, 128), dim=1).bfloat16().requires_grad_() for _ in range(2))
    scale = torch.tensor([100.0], requires_grad=True)
    loss = info_nce(image, text, logit_scale=scale, implementation=implementation, tile=24)
    loss.backward()
    exact = [value.detach().double().requires_grad_() for value in (image, text, scale)]
    expected = info_nce(exact[0], exact[1], logit_scale=exact[2], implementation="dense")
    expected.backward()
    assert loss.dtype == torch.float32
    assert image.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(scale.grad.double(), exact[2].grad, rtol=1e-3, atol=1e-6)
    assert (image.grad - exact[0].grad).norm() < 1e-2 * exact[0].grad.norm()


def test_far_logits_neither_overflow_nor_vanish() -> None:
    """A column whose logits all lie 200 below another's, as trained towers at scale 100 may give."""
    image = torch.eye(4)
    text = torch.stack([image[0], image[1], -image[2], -image[3]])
    scale = torch.tensor([100.0])
    losses = [info_nce(image, text, logit_scale=scale, implementation=i, tile=1) for i in IMPLEMENTATIONS]
    assert torch.stack(losses).isfinite().all()
    torch.testing.assert_close(losses[2], losses[0])


SIZES = (1, 2, 4, "node", None)


def groups_and_members() -> list[tuple[int, int, list[int]]]:
    found = []
    for size in SIZES:
        group = split_ranks(size, key="objective.group_size")  # type: ignore[arg-type]
        ranks = torch.distributed.get_process_group_ranks(group.handle) if group.handle else [0, 1, 2, 3]
        found.append((group.rank, group.size, ranks))
    return found


def test_ranks_agree_on_their_groups(tmp_path: Path) -> None:
    for rank, groups in enumerate(run_gloo(groups_and_members, 4, tmp_path)):
        for size, (own, members, ranks) in zip(SIZES, groups, strict=True):
            expected = size if isinstance(size, int) else 4
            first = rank - rank % expected
            assert (own, members, ranks) == (rank % expected, expected, list(range(first, first + expected)))
