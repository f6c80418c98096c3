"""Micro-batches give the loss and the gradients of the whole batch."""

import csv
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_gloo
from tiny_model import OBJECTIVES, objective_of, tiny_mapping
from torch import Tensor
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import Encoded
from vlm.training import accumulation
from vlm.training.accumulation import loss_and_gradients
from vlm.training.engines import Engine
from vlm.types import Batch

ROWS = 8


def batch() -> dict[str, Tensor]:
    """Captions of different lengths, some of them equal."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(3, 40, (ROWS, 8), generator=generator)
    for row in range(ROWS):
        text[row, 2 + row % 6] = 2  # end of text
    return {
        "image": torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": text,
        "caption_id": torch.tensor([0, 1, 2, 1, 3, 0, 4, 1]),
    }


def model_of(kind: str, *, dropout: float = 0.0) -> DualEncoder:
    mapping = tiny_mapping()
    mapping["init_logit_bias"] = -3.0 if kind == "siglip" else None
    mapping["image"]["options"]["proj_drop_rate"] = dropout
    torch.manual_seed(0)
    return build_model(ModelSpec.from_mapping(mapping)).double()


def one_rank(kind: str, micro_batch_size: int | None, bug: str | None = None) -> dict[str, Tensor]:
    """Loss and gradients, averaged over ranks."""
    topology, model = Topology.current(), model_of(kind)
    rows = {name: value.chunk(topology.world_size)[topology.rank] for name, value in batch().items()}

    def backward(loss: Tensor, last: bool) -> None:
        loss.backward()
        if bug == "scale counted in every part" and not last:
            model.logit_scale.grad *= 2

    if bug == "each part alone":
        accumulation._encode_without_graph = lambda encode, parts, seed: own_part(encode, parts)
    objective = objective_of(kind, mask_equal_captions=True)
    output = loss_and_gradients(
        objective,
        model,
        Batch(**rows),  # type: ignore[typeddict-item]
        encode=partial(objective.encode, model),
        micro_batch_size=micro_batch_size,
        seed=lambda number: None,
        backward=backward,
    )
    result = {"loss": output.total.detach(), **{name: p.grad for name, p in model.named_parameters()}}
    for value in result.values():
        if topology.world_size > 1:
            torch.distributed.all_reduce(value)
        value /= topology.world_size
    return result


def own_part(encode: Callable[[Batch], Encoded], parts: list[Batch]) -> dict[str, Tensor]:
    """The first part's vectors in place of everyone's: pairs no longer meet those of other parts."""
    with torch.no_grad():
        encoded = [encode(parts[0]) for _ in parts]
    joined = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    return {n: v.requires_grad_() if v.is_floating_point() else v for n, v in joined.items()}


def every_size(kind: str) -> list[dict[str, Tensor]]:
    rows = ROWS // Topology.current().world_size
    return [one_rank(kind, size) for size in (rows, rows // 2, 1, max(1, rows - 1), None)]


@pytest.mark.parametrize("kind", list(OBJECTIVES))
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_gradients_are_those_of_the_whole_batch_in_one_process(
    kind: str, world_size: int, tmp_path: Path
) -> None:
    expected = one_rank(kind, None)
    assert {"logit_scale", "image_projection.weight"} < expected.keys()
    for found in run_gloo(every_size, world_size, tmp_path, kind)[0]:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("bug", "shows_in"),
    [("each part alone", "image_projection.weight"), ("scale counted in every part", "logit_scale")],
)
def test_a_planted_bug_is_noticed(bug: str, shows_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulation, "_encode_without_graph", accumulation._encode_without_graph)
    expected, found = one_rank("clip", None), one_rank("clip", 2, bug)
    assert (found[shows_in] - expected[shows_in]).abs().max() > 1e-4


def test_dropout_draws_the_same_when_encoded_again() -> None:
    """The gradients are those of a graph that is kept over all parts."""

    def seed(number: int) -> None:
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
