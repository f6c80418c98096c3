"""Micro-batches give the loss and the gradients of the whole batch."""

import csv
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive_reference import sigmoid_reference, softmax_reference
from gloo import run_gloo
from tiny_model import OBJECTIVES, objective_of, tiny_mapping, token_rows
from torch import Tensor
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.losses import IMPLEMENTATIONS, HardNegatives, info_nce, sigmoid_loss
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import Encoded, Objective
from vlm.training import accumulation
from vlm.training.accumulation import loss_and_gradients
from vlm.training.engines import Engine
from vlm.types import Batch, ContrastiveModel, StepOutput

ROWS, HARD = 16, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loss, and the micro-batches of a rank.

    Args:
        scope: of hard negatives, by an objective of these tests; None: without, by the project's.
    """

    kind: str
    implementation: str
    parts: int
    group_size: int | None = None
    scope: str | None = None


def cases(world_size: int) -> list[Case]:
    """What is another path: parts of 3 are uneven, and a group of four is everyone."""
    found = []
    for kind, implementation in itertools.product(OBJECTIVES, IMPLEMENTATIONS):
        loss = partial(Case, kind=kind, implementation=implementation)
        found += [loss(parts=parts) for parts in ((1, 2, 3, 4) if world_size < 4 else (1,))]
        found += [loss(parts=parts, scope=scope) for scope in ("own", "all") for parts in (2, 4)]
        if world_size == 4:
            found += [loss(parts=parts, group_size=size) for size in (1, 2, 4) for parts in (1, 2, 4)]
    return found


class WithHardNegatives(Objective):
    """A contrastive loss with wrong texts for each image, or without an implementation its reference."""

    required_keys = frozenset()

    def __init__(self, kind: str, implementation: str | None, scope: str) -> None:
        super().__init__()
        self.kind = kind
        self.implementation = implementation
        self.scope = scope

    def encode(self, model: ContrastiveModel, batch: Any) -> Encoded:
        hard = model.encode_text(batch["hard"].flatten(0, 1))
        return {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"]),
            "hard": hard.unflatten(0, (-1, HARD)),
            "present": batch["present"],
        }

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        image, text, hard, present = (encoded[name] for name in ("image", "text", "hard", "present"))
        scale, bias = model.logit_scale.exp(), model.logit_bias
        how: dict[str, Any] = {"logit_scale": scale, "implementation": self.implementation, "tile": 3}
        how["negatives"] = HardNegatives(text=hard, present=present, scope=self.scope)
        if self.implementation is None:
            wrong = (hard, present, self.scope)
            loss = (
                softmax_reference(image, text, scale, hard=wrong)
                if bias is None
                else sigmoid_reference(image, text, scale, bias, hard=wrong)
            )
        elif bias is None:
            loss = info_nce(image, text, **how)
        else:
            loss = sigmoid_loss(image, text, logit_bias=bias, **how)
        return StepOutput(terms={"itc": loss}, weights={"itc": 1.0})


def batch() -> dict[str, Tensor]:
    """Captions of different lengths, some of them equal, and wrong ones, of which some are missing."""
    generator = torch.Generator().manual_seed(3)
    text = token_rows(ROWS * (1 + HARD), generator=generator)
    return {
        "image": torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": text[:ROWS],
        "caption_id": torch.tensor([0, 1, 2, 1, 3, 0, 4, 1, 5, 6, 5, 7, 8, 0, 9, 9]),
        "hard": text[ROWS:].unflatten(0, (ROWS, HARD)),
        "present": torch.rand(ROWS, HARD, generator=generator) < 0.7,
    }


def model_of(kind: str, *, dropout: float = 0.0) -> DualEncoder:
    mapping = tiny_mapping()
    mapping["init_logit_bias"] = -3.0 if kind == "siglip" else None
    mapping["image"]["options"]["proj_drop_rate"] = dropout
    torch.manual_seed(0)
    return build_model(ModelSpec.from_mapping(mapping)).double()


def step(objective: Objective, kind: str, rows: dict[str, Tensor], parts: int) -> dict[str, Tensor]:
    """Loss and gradients of this rank."""
    model = model_of(kind)
    output = loss_and_gradients(
        objective,
        model,
        Batch(**rows),  # type: ignore[typeddict-item]
        encode=partial(objective.encode, model),
        micro_batch_size=math.ceil(len(rows["image"]) / parts),
        seed=lambda number: None,
        backward=lambda loss, last: loss.backward(),
    )
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.total.detach(), **gradients}


def one_rank(case: Case) -> dict[str, Tensor]:
    """Loss and gradients, averaged over ranks as data parallelism does."""
    topology = Topology.current()
    if case.scope is None:
        how = {"implementation": case.implementation, "group_size": case.group_size}
        objective = objective_of(case.kind, mask_equal_captions=True, **how)
    else:
        objective = WithHardNegatives(case.kind, case.implementation, case.scope)
    objective.setup(topology)
    rows = {name: value.chunk(topology.world_size)[topology.rank] for name, value in batch().items()}
    result = step(objective, case.kind, rows, case.parts)
    for value in result.values():
        if topology.world_size > 1:
            torch.distributed.all_reduce(value)
        value /= topology.world_size
    return result


@cache
def expected(kind: str, scope: str | None, num_groups: int) -> dict[str, Tensor]:
    """The mean over groups of pairs of what one process has of each, all rows seen at once."""
    objective = objective_of(kind, mask_equal_captions=True, implementation="dense")
    if scope is not None:
        objective = WithHardNegatives(kind, None, scope)
    parts = [
        step(objective, kind, {name: value.chunk(num_groups)[group] for name, value in batch().items()}, 1)
        for group in range(num_groups)
    ]
    return {name: sum(part[name] for part in parts) / num_groups for name in parts[0]}  # type: ignore[misc]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], about: object) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{about} {n}: {m}"
        )


def every_case() -> list[dict[str, Tensor]]:
    """One start of the processes for all of them."""
    return [one_rank(case) for case in cases(Topology.current().world_size)]


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.long)])
def test_gradients_are_those_of_the_whole_batch_in_one_process(world_size: int, tmp_path: Path) -> None:
    results = every_case() if world_size == 1 else run_gloo(every_case, world_size, tmp_path)[0]
    for case, found in zip(cases(world_size), results, strict=True):
        num_groups = world_size // (case.group_size or world_size)
        assert_equal(found, expected(case.kind, case.scope, num_groups), case)
        assert {"logit_scale", "image_projection.weight"} < found.keys()


def each_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part's vectors in place of everyone's: pairs no longer meet those of other parts."""

    def own_part(encode: Callable[[Batch], Encoded], parts: list[Batch], seed: object) -> dict[str, Tensor]:
        with torch.no_grad():
            encoded = [encode(parts[0]) for _ in parts]
        joined = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        return {n: v.requires_grad_() if v.is_floating_point() else v for n, v in joined.items()}

    monkeypatch.setattr(accumulation, "_encode_without_graph", own_part)


def scale_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replay takes the loss again and sends it backward, as where a part's new vectors take the place
    of the cached ones: scale and bias are counted once more each time."""
    take, length = OBJECTIVES["clip"].loss, accumulation._length
    seen: list[tuple[Any, ...]] = []

    def loss(objective: Any, model: Any, encoded: Encoded) -> StepOutput:
        seen.append((objective, model, {name: value.detach() for name, value in encoded.items()}))
        return take(objective, model, encoded)

    def replayed(encoded: Encoded) -> int:
        take(*seen[0]).total.backward()
        return length(encoded)

    monkeypatch.setattr(OBJECTIVES["clip"], "loss", loss)
    monkeypatch.setattr(accumulation, "_length", replayed)


@pytest.mark.parametrize(
    ("plant", "shows_in"), [(each_part_alone, "loss"), (scale_in_every_part, "logit_scale")]
)
def test_a_planted_bug_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], shows_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, whole = Case(kind="clip", implementation="tiled", parts=4), expected("clip", None, 1)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=rf"Case.* {shows_in}: \w+-?\w+ are not close"):
        assert_equal(one_rank(case), whole, case)


def test_dropout_draws_the_same_when_encoded_again() -> None:
    """The gradients are those of a graph that is kept over all parts."""

    def seed(number: int | None) -> None:
        if number is not None:
            torch.manual_seed(100 + number)

    whole, objective, kept = batch(), objective_of("clip"), model_of("clip", dropout=0.5)
    parts = accumulation.split(Batch(**whole), 3)  # type: ignore[typeddict-item]
    encoded = []
    for number, part in enumerate(parts):
        seed(number)
        encoded.append(objective.encode(kept, part))
    objective.loss(kept, {n: torch.cat([e[n] for e in encoded]) for n in encoded[0]}).total.backward()

    model = model_of("clip", dropout=0.5)
    loss_and_gradients(
        objective,
        model,
        Batch(**whole),  # type: ignore[typeddict-item]
        encode=partial(objective.encode, model),
        micro_batch_size=3,
        seed=seed,
        backward=lambda loss, last: loss.backward(),
    )
    for (name, parameter), other in zip(model.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-10, msg=name)
    assert not torch.equal(objective.encode(model, part)["image"], objective.encode(model, part)["image"])


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_weights_cast_without_a_graph_are_not_met_again(kind: str) -> None:
    """Autocast would hand the casts of the first pass, which carry no gradients, to the second."""
    from lightning import LightningModule  # not before vlm, which mends torchvision for it

    gradients: list[dict[str, Any]] = []
    for size in (None, 4):
        model, objective = model_of(kind).float(), objective_of(kind)
        engine = Engine(precision="bf16-mixed", gradient_clip=None)
        loss_and_gradients(
            objective,
            model,
            Batch(**batch()),  # type: ignore[typeddict-item]
            encode=engine.encode(LightningModule(), objective, model),
            micro_batch_size=size,
            seed=lambda number: None,
            backward=lambda loss, last: loss.backward(),
        )
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[1].keys() == gradients[0].keys()
    for name, value in gradients[0].items():
        assert (gradients[1][name] - value).norm() <= 0.01 * value.norm() + 1e-6, name


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_in_bf16_the_towers_alone_run_under_autocast(
    objective: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bool]] = {"encode": set(), "loss": set(), "backward": set(), "after_step": set()}

    def looking(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def looked(*args: Any, **kwargs: Any) -> Any:
            seen[name].add(torch.is_autocast_enabled("cpu"))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, looked)

    for name in ("encode", "loss", "after_step"):
        looking(OBJECTIVES[objective], name)
    looking(Engine, "backward")
    rows = {}
    for precision in ("bf16-mixed", "32-true"):
        name = f"{objective}_{precision}"
        settings = [f"objective={objective}", f"run.name={name}", f"trainer.precision={precision}"]
        settings += ["suite=none", "trainer.max_steps=4", "objective.implementation=tiled"]
        train_from(composed(tiny_overrides(toy, *settings, "trainer.micro_batch_size=20")))
        rows[precision] = losses(toy / "runs" / name)
        half = precision == "bf16-mixed"
        assert seen == {"encode": {half}, "loss": {False}, "backward": {False}, "after_step": {False}}
        seen["encode"].clear()
    assert rows["bf16-mixed"] != rows["32-true"]
    assert rows["bf16-mixed"] == pytest.approx(rows["32-true"], rel=1e-2)


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.long
def test_a_run_in_micro_batches_is_the_same_run_over_two_ranks(toy: Path) -> None:
    runs = []
    for size in ("null", "5"):
        name = f"micro_{size}"
        overrides = ["suite=none", "trainer.devices=2", f"trainer.micro_batch_size={size}"]
        command = [sys.executable, "-m", "vlm.cli.train"]
        command += tiny_overrides(toy, *overrides, f"run.name={name}", "trainer.max_steps=4")
        subprocess.run(command, check=True, capture_output=True, timeout=200)
        runs.append(losses(toy / "runs" / name))
    assert len(runs[0]) == 4
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


def test_batch_normalisation_is_refused(toy: Path) -> None:
    options = "++model.image.options.norm_layer=batchnorm2d"
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch_size=5 with batch normalisation in image"):
        train_from(
            composed(tiny_overrides(toy, "run.name=bn", "suite=none", "trainer.micro_batch_size=5", options))
        )
    assert not (toy / "runs" / "bn").exists()  # else the corrected command would find it taken
