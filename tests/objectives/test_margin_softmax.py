"""Margin softmax through an objective: ranks and micro-batches together are one process with all rows."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_gloo
from tiny_model import tiny_mapping
from torch import Tensor

from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import MarginSoftmaxObjective
from vlm.training.accumulation import loss_and_gradients
from vlm.training.centres import load_centres, save_centres
from vlm.types import Batch

ROWS, CLASSES = 12, 11
DEFAULTS: dict[str, Any] = {
    "num_classes": CLASSES,
    "embed_dim": 8,
    "loss": "softmax",
    "scale": 16.0,
    "m1": 1.0,
    "m2": 0.0,
    "m3": 0.3,
    "margin_gradient": "straight_through",
    "sample_rate": 1.0,
    "filter_above": None,
    "num_dims": None,
    "seed": 0,
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"loss": "mlcd", "sample_rate": 0.6},
    {"m2": 0.3, "margin_gradient": "exact", "num_dims": 5, "sample_rate": 0.1},
    {"filter_above": 0.5, "scale": 4.0},
]

SAMPLED = {"sample_rate": 0.5, "num_dims": 5}


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    label = torch.stack([torch.randperm(CLASSES, generator=generator)[:3] for _ in range(ROWS)])
    label[2, 1:] = -1
    image = torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": label}


def prepared(change: dict[str, Any]) -> tuple[DualEncoder, MarginSoftmaxObjective]:
    """In float64."""
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_mapping(tiny_mapping() | {"text": None})).double()
    objective = MarginSoftmaxObjective(**DEFAULTS | change)
    objective.setup(Topology.current())
    centres = objective.centres
    assert centres is not None
    for name in ("weight", "exp_avg", "exp_avg_sq"):
        setattr(centres, name, getattr(centres, name).double())
    return model, objective


def step(
    model: DualEncoder, objective: MarginSoftmaxObjective, micro_batch_size: int | None
) -> dict[str, Tensor]:
    """Loss, averaged gradients of the tower and, put together, what a step makes of the centres."""
    topology, centres = Topology.current(), objective.centres
    assert centres is not None
    rows = {name: value.chunk(topology.world_size)[topology.rank] for name, value in batch().items()}
    output = loss_and_gradients(
        objective,
        model,
        Batch(**rows),  # type: ignore[typeddict-item]
        encode=partial(objective.encode, model),
        micro_batch_size=micro_batch_size,
        seed=lambda number: torch.manual_seed(7 if number is None else 100 * topology.rank + number),
        backward=lambda loss, last: loss.backward(),
    )
    found = {"loss": output.total.detach(), "cosine": output.metrics["own_cosine"]}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    centres.step(lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    after = torch.zeros(CLASSES, 8, dtype=torch.float64)
    after[centres.rows.start : centres.rows.stop] = centres.weight
    if topology.world_size > 1:
        for value in found.values():
            torch.distributed.all_reduce(value)
            value /= topology.world_size
        torch.distributed.all_reduce(after)
    return {**found, "centres": after}


def one_rank(change: dict[str, Any], micro_batch_size: int | None) -> dict[str, Tensor]:
    return step(*prepared(change), micro_batch_size)


def first_step_is_saved(folder: Path) -> None:
    model, objective = prepared(SAMPLED)
    step(model, objective, None)
    assert objective.centres is not None
    save_centres(folder, objective.centres)


def second_step(folder: Path) -> dict[str, Tensor]:
    model, objective = prepared(SAMPLED)
    assert objective.centres is not None
    load_centres(folder, objective.centres)
    return step(model, objective, None)


def test_the_next_step_is_the_same_on_another_number_of_ranks(tmp_path: Path) -> None:
    of_four, of_one = tmp_path / "of_four", tmp_path / "of_one"
    run_gloo(first_step_is_saved, 4, tmp_path, of_four)
    first_step_is_saved(of_one)
    expected = second_step(of_one)
    for found in [second_step(of_four), *run_gloo(second_step, 3, tmp_path, of_four)]:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


def all_cases(sizes: list[int | None]) -> list[dict[str, Tensor]]:
    return [one_rank(change, size) for change, size in itertools.product(CHANGES, sizes)]


@pytest.mark.parametrize(
    ("world_size", "sizes"),
    [
        (1, [4, 2]),
        (2, [None, 2]),
        pytest.param(3, [None, 2], marks=pytest.mark.long),
        (4, [None, 1]),
    ],
)
def test_ranks_and_micro_batches_equal_one_process(
    world_size: int, sizes: list[int | None], tmp_path: Path
) -> None:
    for results in run_gloo(all_cases, world_size, tmp_path, sizes):
        for (change, size), found in zip(itertools.product(CHANGES, sizes), results, strict=True):
            expected = one_rank(change, None)
            assert found.keys() == expected.keys()
            assert "image_projection.weight" in found
            for name, value in expected.items():
                torch.testing.assert_close(
                    found[name],
                    value,
                    rtol=0,
                    atol=1e-12,
                    msg=lambda m, about=(change, size, name): f"{about}: {m}",
                )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, r"objective\.num_classes=1 has to be at least 2"),
        ({"scale": 0.0}, r"objective\.scale=0.0 has to be positive"),
        ({"m1": 0.9}, r"objective\.m1=0.9"),
        ({"m2": -0.1}, r"objective\.m2=-0.1"),
        ({"m3": 2.0}, r"objective\.m3=2.0"),
        ({"sample_rate": 0.0}, r"objective\.sample_rate=0.0"),
        ({"filter_above": 1.0}, r"objective\.filter_above=1.0"),
        ({"num_dims": 9}, r"objective\.num_dims=9 has to be 1 … 8"),
    ],
)
def test_values_out_of_range_are_refused_by_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MarginSoftmaxObjective(**DEFAULTS | change)


def test_labels_may_name_no_more_classes_than_there_are(caplog: pytest.LogCaptureFixture) -> None:
    objective = MarginSoftmaxObjective(**DEFAULTS)
    for said in (None, CLASSES):
        objective.check_classes(said)
    assert not caplog.records
    objective.check_classes(CLASSES - 1)
    assert f"data.train.labels name {CLASSES - 1} classes" in caplog.text
    with pytest.raises(ConfigError, match=rf"objective\.num_classes={CLASSES}, .* set it to {CLASSES + 1}"):
        objective.check_classes(CLASSES + 1)
