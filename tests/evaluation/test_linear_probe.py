import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from fake_embedder import FakeSets
from tiny import write_tiny_shards
from torch.nn.functional import normalize

from vlm.errors import ConfigError, DataError
from vlm.evaluation import LinearProbe
from vlm.evaluation.labelled import is_right
from vlm.evaluation.linear_probe import (
    Trial,
    best_of,
    between_neighbours,
    ends_open,
    validation_rows,
)

L2 = [1e-8, 1e-6, 1e-4, 1e-2, 1.0]


def probe(train: str = "train", test: str = "test", *, l2: list[float] = L2, seed: int = 0) -> LinearProbe:
    return LinearProbe(train, test, label="cls", l2=l2, validation_share=0.2, seed=seed)


def pictures(*, noise: float, seed: int, count: int = 120) -> tuple[torch.Tensor, list[str]]:
    """Three classes; a quarter of the labels is wrong, so that a strong penalty helps."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 3
    features = torch.eye(3).repeat(1, 8)[label] + noise * torch.randn(count, 24, generator=generator)
    shown = torch.where(torch.rand(count, generator=generator) < 0.25, (label + 1) % 3, label)
    return normalize(features, dim=1), [f"class {number}" for number in shown.tolist()]


def test_every_class_keeps_its_share_for_validation_and_never_all() -> None:
    label = torch.tensor([0] * 20 + [1] * 5 + [2] * 2 + [3])[torch.randperm(28)]
    kept = validation_rows(label, share=0.2, seed=0)
    assert label[kept].bincount(minlength=4).tolist() == [4, 1, 1, 0]
    assert torch.equal(kept, validation_rows(label, share=0.2, seed=0))
    assert not torch.equal(kept, validation_rows(label, share=0.2, seed=1))
    assert validation_rows(label, share=0.99, seed=0)[label == 0].sum() == 19


def test_the_best_value_is_the_most_accurate_then_the_surest() -> None:
    trials = [
        Trial(l2=l2, acc1=acc1, cross_entropy=loss)
        for l2, acc1, loss in [(1e-8, 0.5, 0.1), (1e-4, 0.9, 0.5), (1e-2, 0.9, 0.4), (1.0, 0.8, 0.2)]
    ]
    assert best_of(trials).l2 == 1e-2
    assert between_neighbours(trials) == pytest.approx([1e-3, 1e-1])
    assert between_neighbours(trials[:2]) == pytest.approx([1e-6])


def test_equal_logits_and_nan_are_wrong() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0], [torch.nan, 0.0], [0.0, torch.nan]])
    assert is_right(logits, torch.zeros(4, dtype=torch.int64)).tolist() == [True, False, False, False]


def test_the_sweep_finds_a_value_near_the_best_of_a_dense_grid() -> None:
    data = FakeSets(train=pictures(noise=0.5, seed=0, count=600), test=pictures(noise=0.5, seed=1, count=900))
    result = probe()(data)
    assert result.details["sweep"] == sorted(result.details["sweep"])
    assert len(result.details["sweep"]) == 5 + 3 * 2
    dense = [
        probe(l2=[10.0**power])(data).metrics["lp_acc1"] for power in torch.arange(-8, 0.1, 0.5).tolist()
    ]
    assert result.metrics["lp_acc1"] >= max(dense) - 0.03
    assert min(dense) < max(dense) - 0.03  # or any value would have done
    assert result.notes["validation_acc1"] == max(value for _, value in result.details["sweep"])


def test_a_single_value_is_used_as_it_is_on_all_pictures() -> None:
    data = FakeSets(train=pictures(noise=0.5, seed=0), test=pictures(noise=0.5, seed=1))
    result = probe(l2=[0.01])(data)
    assert result.notes == {"num_train": 120, "l2": 0.01}
    assert result.details["sweep"] == []
    assert probe(l2=[0.01], seed=5)(data).metrics == result.metrics


def test_only_the_training_pictures_are_learned_from() -> None:
    features, labels = torch.eye(4).repeat(5, 1), [row % 4 for row in range(20)]
    moved = [(label + 1) % 4 for label in labels]
    assert probe()(FakeSets(train=(features, labels), test=(features, labels))).metrics["lp_acc1"] == 1.0
    assert probe()(FakeSets(train=(features, labels), test=(features, moved))).metrics["lp_acc1"] == 0.0


def test_scores_examples_and_confusions_agree() -> None:
    data = FakeSets(train=pictures(noise=0.1, seed=0), test=pictures(noise=0.1, seed=1))
    result = probe(l2=[0.01])(data)
    truth = data.sets["test"].records
    right = {row["sample"]: row["right"] for row in result.details["examples"]}
    for row in result.details["examples"]:
        assert row["true"] == truth[row["sample"]]["cls"]
        assert (row["guesses"][0]["caption"] == row["true"]) == right[row["sample"]]
        assert row["guesses"][0]["relevant"] == right[row["sample"]]
        assert sum(guess["score"] for guess in row["guesses"]) == pytest.approx(1)
    wrong = sum(pair["count"] for pair in result.details["confused"])
    assert result.metrics["lp_acc1"] == pytest.approx(1 - wrong / 120)
    assert 0.6 < result.metrics["lp_acc1"] < 0.9  # a quarter of the labels is wrong
    counts = Counter(record["cls"] for record in truth)
    lost = Counter[str]()
    for pair in result.details["confused"]:
        lost[pair["true"]] += pair["count"]
    recalls = [1 - lost[name] / count for name, count in counts.items()]
    assert result.metrics["mean_per_class_recall"] == pytest.approx(sum(recalls) / 3)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.9, 0.8, 0.7], True),
        ([0.7, 0.8, 0.9], True),
        ([0.7, 0.9, 0.8], False),
        ([0.9, 0.9, 0.8], False),
        ([0.9, 0.8, 0.9], True),
        ([0.9, 0.8], True),
        ([0.9, 0.9], False),
    ],
)
def test_a_sweep_that_still_rises_at_its_end_is_open(accuracies: list[float], expected: bool) -> None:
    trials = [Trial(l2=10.0**place, acc1=value, cross_entropy=1.0) for place, value in enumerate(accuracies)]
    assert ends_open(trials[::-1]) == expected


def test_an_open_sweep_is_told(caplog: pytest.LogCaptureFixture) -> None:
    data = FakeSets(train=pictures(noise=0.5, seed=0), test=pictures(noise=0.5, seed=1))
    result = probe(l2=[1e-7, 1e-6])(data)
    told = "is at the end of the sweep; extend `l2` beyond it" in caplog.text
    trials = [Trial(l2=l2, acc1=value, cross_entropy=1.0) for l2, value in result.details["sweep"]]
    assert told == ends_open(trials)


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = pictures(noise=0.5, seed=0)
    features[3] = math.nan
    with pytest.raises(DataError, match=r"1 of 120 pictures of train=train vectors that are not finite"):
        probe()(FakeSets(train=(features, labels), test=(features, labels)))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "a"], ["a"], "every sample of train=train has cls='a'; name the field"),
        (["a", "b"], ["c"], "sample 0 of test=test has cls='c', which no sample of train=train has"),
        (["a", "b"], ["a"], "no class of train=train has two pictures.*give `l2` a single value"),
        (["a", None], ["a"], "sample 1 has cls=None.*name the field that holds the class by `label`"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(train: list, test: list, message: str) -> None:
    sets = FakeSets(train=(torch.eye(len(train)), train), test=(torch.eye(2)[: len(test)], test))
    with pytest.raises(DataError, match=message):
        probe()(sets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": []}, r"l2=\[\]"),
        ({"l2": [0.0]}, r"l2=\[0.0\]"),
        ({"validation_share": 1.0}, "validation_share=1.0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinearProbe("a", "b", **{"label": "cls", "l2": [1.0], "validation_share": 0.1, "seed": 0} | change)


def test_check_refuses_sets_that_share_a_shard(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path, num_samples=12)
    probe(f"{tmp_path}/00000.tar", f"{tmp_path}/0000[12].tar").check()
    with pytest.raises(DataError, match=r"train and test both hold .*00002.tar"):
        probe(shards, f"{tmp_path}/00002.tar").check()
