import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from fake_embedder import FakeSets
from tiny import write_tiny_shards
from torch.nn.functional import normalize, one_hot

from vlm.errors import ConfigError, DataError
from vlm.evaluation import FewShotRidge
from vlm.evaluation.few_shot import drawn, ridge


def few_shot(**changes: Any) -> FewShotRidge:
    arguments = {"label": "cls", "shots": [1, 4], "l2": 0.1, "seeds": [0, 1, 2]}
    return FewShotRidge("train", "test", **(arguments | changes))


def pictures(*, seed: int, count: int, noise: float = 0.5) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 3
    features = torch.eye(3).repeat(1, 4)[label] + noise * torch.randn(count, 12, generator=generator)
    return normalize(features, dim=1), [f"class {number}" for number in label.tolist()]


@pytest.mark.parametrize("rows", [5, 40])
def test_the_weight_is_where_the_gradient_of_the_objective_is_zero(rows: int) -> None:
    """With fewer rows than dimensions, and with more."""
    torch.manual_seed(0)
    features, target = torch.randn(rows, 12) + 3, one_hot(torch.arange(rows) % 3).double()
    weight, bias = (value.clone().requires_grad_() for value in ridge(features, target, l2=0.7))
    loss = (features.double() @ weight + bias - target).square().sum() + 0.7 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-9
    assert bias.grad.abs().max() < 1e-9


def test_a_draw_holds_as_many_of_each_class_and_grows() -> None:
    label = torch.tensor([0] * 9 + [1] * 4 + [2] * 6)[torch.randperm(19)]
    two, four = (drawn(label, shots=shots, seed=3) for shots in (2, 4))
    assert label[two].bincount().tolist() == [2, 2, 2]
    assert label[four].bincount().tolist() == [4, 4, 4]
    assert set(two.tolist()) < set(four.tolist())
    assert not torch.equal(two, drawn(label, shots=2, seed=4))


def slow_accuracy(train: Any, test: Any, *, shots: int, seed: int) -> float:
    (x, classes), (queries, true) = train, test
    number = {name: row for row, name in enumerate(dict.fromkeys(classes))}
    label = torch.tensor([number[name] for name in classes])
    rows = drawn(label, shots=shots, seed=seed)
    own = x[rows].double()
    design = torch.cat([own, torch.ones(len(own), 1)], dim=1)
    penalty = 0.1 * torch.eye(13, dtype=torch.float64)
    penalty[-1, -1] = 0  # the bias is free
    solution = torch.linalg.lstsq(
        design.T @ design + penalty, design.T @ one_hot(label[rows]).double()
    ).solution
    logits = torch.cat([queries.double(), torch.ones(len(queries), 1)], dim=1) @ solution
    return fmean(
        number[name] == guess for name, guess in zip(true, logits.argmax(dim=1).tolist(), strict=True)
    )


def test_metrics_are_means_over_draws_and_equal_slow_ones() -> None:
    train, test = pictures(seed=0, count=30), pictures(seed=1, count=90)
    result = few_shot()(FakeSets(train=train, test=test))
    for shots in (1, 4):
        expected = [slow_accuracy(train, test, shots=shots, seed=seed) for seed in (0, 1, 2)]
        assert len(set(expected)) > 1
        assert result.metrics[f"few_shot_acc1@{shots}"] == pytest.approx(fmean(expected))
        assert result.notes[f"few_shot_acc1@{shots}_std"] == pytest.approx(stdev(expected))
    assert result.metrics["few_shot_acc1@1"] < result.metrics["few_shot_acc1@4"]
    assert result.chance == pytest.approx({"few_shot_acc1@1": 1 / 3, "few_shot_acc1@4": 1 / 3})
    (rows,) = result.outcomes
    for metric, value in result.metrics.items():
        assert rows.values[metric].mean() == pytest.approx(value)
    assert list(rows.category) == test[1]
    assert result == few_shot()(FakeSets(train=train, test=test))


def test_a_model_without_opinion_is_wrong_everywhere() -> None:
    (_, train), (_, test) = pictures(seed=0, count=30), pictures(seed=1, count=90)
    result = few_shot()(FakeSets(train=(torch.ones(30, 12), train), test=(torch.ones(90, 12), test)))
    assert set(result.metrics.values()) == {0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": []}, r"shots=\[\] has to be a list of numbers from 1 on"),
        ({"shots": [0, 1]}, r"shots=\[0, 1\] has to be"),
        ({"l2": 0.0}, "l2=0.0 has to be a number above 0"),
        ({"l2": math.inf}, "l2=inf has to be a number above 0"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] has to be a list of different numbers"),
        ({"seeds": []}, r"seeds=\[\] has to be"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        few_shot(**changes)


def test_shots_that_not_every_class_has_are_left_out() -> None:
    features, label = pictures(seed=0, count=31)
    sets = FakeSets(train=(features, label), test=(features, label))
    found, whole = few_shot(shots=[1, 10, 11, 16])(sets), few_shot(shots=[1, 10])(sets)
    assert found.metrics == whole.metrics
    assert found.notes == whole.notes | {"shots_left_out": "11, 16"}
    with pytest.raises(
        DataError, match=r"shots=\[11\]: train=train has 10 pictures of cls='class 1', too few"
    ):
        few_shot(shots=[11])(sets)


def test_what_is_left_out_is_told_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_shards(tmp_path, num_samples=20)
    data = {"train": f"{tmp_path}/0000[012].tar", "test": f"{tmp_path}/0000[34].tar"}
    asked = {"label": "cls", "l2": 1.0, "seeds": [0]}
    FewShotRidge(**data, **asked, shots=[1, 2]).check()
    assert not caplog.records
    FewShotRidge(**data, **asked, shots=[1, 500]).check()
    assert "so 500 shots are left out" in caplog.text
