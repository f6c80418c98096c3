"""Every way to compute the contrastive losses, over ranks, beside one process that goes pair by pair."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contrastive_reference import sigmoid_reference, softmax_reference
from gloo import run_gloo
from torch import Tensor, nn

from vlm.distributed import Group, Topology, collectives, split_ranks
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


def reference(kind: str, *, masked: bool, scope: str | None, pairs: slice = slice(None)) -> dict[str, Tensor]:
    """Loss and gradients of one process."""
    towers, rows = Towers(), {name: value[pairs] for name, value in data().items()}
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


def one_rank(kind: str, case: dict[str, Any]) -> dict[str, Tensor]:
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
    if kind == "softmax":
        loss = info_nce(image, text, **options)
    else:
        loss = sigmoid_loss(image, text, logit_bias=towers.logit_bias, **options)
    loss.backward()
    result = {"loss": loss.detach(), **gradients(towers)}
    for value in result.values():
        torch.distributed.all_reduce(value)
        value /= topology.world_size
    return result


CASES = [
    {"implementation": implementation, "masked": masked, "scope": scope, "tile": tile}
    for implementation, masked, scope in itertools.product(
        IMPLEMENTATIONS, [False, True], [None, "own", "all"]
    )
    for tile in ([1, 3, 100] if implementation == "tiled" else [1])
]


def all_cases(kind: str) -> list[dict[str, Tensor]]:
    """One start of the processes for all of them."""
    return [one_rank(kind, case) for case in CASES]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], about: object) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{about} {n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_averages_over_ranks_equal_one_process(kind: str, world_size: int, tmp_path: Path) -> None:
    for results in run_gloo(all_cases, world_size, tmp_path, kind):
        for case, found in zip(CASES, results, strict=True):
            expected = reference(kind, masked=case["masked"], scope=case["scope"])
            assert_equal(found, expected, case)


GROUPED = [
    {"implementation": implementation, "group_size": size, "masked": True, "scope": "all"}
    for implementation in IMPLEMENTATIONS
    for size in (1, 2, 4)
]


def all_grouped(kind: str) -> list[dict[str, Tensor]]:
    return [one_rank(kind, case) for case in GROUPED]


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_is_the_mean_over_groups(kind: str, tmp_path: Path) -> None:
    results = run_gloo(all_grouped, 4, tmp_path, kind)
    for case, found in zip(GROUPED, results[0], strict=True):
        size = case["group_size"] * PAIRS // 4
        groups = [
            reference(kind, masked=True, scope="all", pairs=slice(first, first + size))
            for first in range(0, PAIRS, size)
        ]
        mean = {name: sum(group[name] for group in groups) / len(groups) for name in groups[0]}
        assert_equal(found, mean, case)


def planted_bug(name: str, kind: str) -> dict[str, Tensor]:
    """`one_rank` of what the bug breaks."""
    case = {"implementation": "local_rows"}
    match name:
        case "dense gather without its backward" | "local_rows gather without its backward":
            case["implementation"] = name.split()[0]

            def own_share(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
                return grad.chunk(ctx.group.size)[ctx.group.rank], None

            collectives._GatherRows.backward = staticmethod(own_share)
        case "tiled without the merge of columns":
            case["implementation"] = "tiled"
            tiled.logsumexp_over_ranks = lambda x, group: x
        case "tiled with a scale per tile":
            case["implementation"] = "tiled"
            backward = tiled._Logits.backward

            def repeated(self: Any, weights: Any) -> tuple[Tensor, ...]:
                rows, columns, scale, bias = backward(self, weights)
                return rows, columns, scale * 2, bias

            tiled._Logits.backward = repeated
    return one_rank(kind, case)


@pytest.mark.parametrize(
    ("bug", "kind", "shows_in"),
    [
        ("dense gather without its backward", "softmax", "image.weight"),
        ("local_rows gather without its backward", "sigmoid", "text.weight"),
        ("tiled without the merge of columns", "softmax", "loss"),
        ("tiled with a scale per tile", "sigmoid", "logit_scale"),
    ],
)
def test_a_planted_bug_is_noticed(bug: str, kind: str, shows_in: str, tmp_path: Path) -> None:
    expected = reference(kind, masked=False, scope=None)
    found = run_gloo(planted_bug, 2, tmp_path, bug, kind)[0]
    assert (found[shows_in] - expected[shows_in]).abs().max() > 1e-3


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


def group_and_members(size: Any) -> tuple[Group, int]:
    group = split_ranks(size, key="objective.group_size")
    ranks = torch.distributed.get_process_group_ranks(group.handle) if group.handle else [0, 1, 2, 3]
    return (group.rank, group.size, ranks)


@pytest.mark.parametrize("size", [1, 2, 4, "node", None])
def test_ranks_agree_on_their_groups(size: Any, tmp_path: Path) -> None:
    expected = size if isinstance(size, int) else 4
    for rank, (own, members, ranks) in enumerate(run_gloo(group_and_members, 4, tmp_path, size)):
        first = rank - rank % expected
        assert (own, members, ranks) == (rank % expected, expected, list(range(first, first + expected)))
