import math
from pathlib import Path

import pytest
import torch
from fake_embedder import FakeSets
from tiny import write_tiny_shards

from vlm.errors import ConfigError, DataError
from vlm.evaluation import NearestNeighbours, nearest_neighbours


def tied_rows(count: int, *, seed: int) -> torch.Tensor:
    """Small whole numbers: many exact ties."""
    return torch.randint(-2, 3, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


def knn(*, k: int, temperature: float = 0.07) -> NearestNeighbours:
    return NearestNeighbours("train", "test", label="cls", k=k, temperature=temperature)


def slow_right(query: torch.Tensor, own: int, train: torch.Tensor, labels: list[int], *, k: int) -> bool:
    """Of equally near rows those of the other classes come first."""
    cosines = [sum(float(a) * float(b) for a, b in zip(query, row, strict=True)) for row in train]
    order = sorted(range(len(train)), key=lambda row: (-cosines[row], labels[row] == own))[:k]
    votes: dict[int, float] = {}
    for row in order:
        votes[labels[row]] = votes.get(labels[row], 0.0) + math.exp(cosines[row] / 2)
    mine = votes.pop(own, 0.0)
    return mine > max(votes.values(), default=0.0) * (1 + 1e-6)


@pytest.mark.parametrize("k", [1, 3, 8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_accuracy_of_two_classes_equals_slow_loops_with_ties(seed: int, k: int) -> None:
    # With two classes it does not matter which of the equally near wrong neighbours is taken.
    train, test = tied_rows(40, seed=seed), tied_rows(25, seed=seed + 10)
    train_label, test_label = [row % 2 for row in range(40)], [row % 2 for row in range(25)]
    result = knn(k=k, temperature=2.0)(FakeSets(train=(train, train_label), test=(test, test_label)))
    expected = [
        slow_right(query, own, train, train_label, k=k) for query, own in zip(test, test_label, strict=True)
    ]
    assert result.metrics["knn_acc1"] == pytest.approx(sum(expected) / 25)


@pytest.mark.parametrize("tiles", [(7, 5), (512, 16), (1, 1)])
def test_tiles_do_not_change_the_votes(tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(90, 6, generator=generator), torch.randn(31, 6, generator=generator)
    sets = FakeSets(
        train=(train, [row % 5 for row in range(90)]), test=(test, [row % 5 for row in range(31)])
    )
    whole = knn(k=7)(sets)
    monkeypatch.setattr(nearest_neighbours, "QUERY_ROWS", tiles[0])
    monkeypatch.setattr(nearest_neighbours, "TRAIN_ROWS", tiles[1])
    assert knn(k=7)(sets) == whole


@pytest.mark.parametrize("temperature", [0.07, 1e-4])
def test_votes_weigh_the_exponential_of_the_cosine(temperature: float) -> None:
    angles = torch.tensor([0.0, 0.1, 0.11, 1.0])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    sets = FakeSets(train=(train, ["far", "near", "near", "far"]), test=(torch.tensor([[1.0, 0.0]]), ["far"]))
    result = knn(k=4, temperature=temperature)(sets)
    votes = (train[:, 0].double() / temperature - 1 / temperature).exp()
    share = votes[[0, 3]].sum() / votes.sum()
    assert result.metrics["knn_acc1"] == float(share > 0.5)
    assert result.details["examples"][0]["share"] == pytest.approx(max(share, 1 - share))
    assert [item["caption"] for item in result.details["examples"][0]["found"]] == [
        "far",
        "near",
        "near",
        "far",
    ]


@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan])
def test_a_model_without_opinion_is_never_right(value: float) -> None:
    labels = [row % 3 for row in range(30)]
    sets = FakeSets(train=(torch.full((30, 4), value), labels), test=(torch.full((30, 4), value), labels))
    assert knn(k=5)(sets).metrics == {"knn_acc1": 0.0, "mean_per_class_recall": 0.0}


def test_a_class_with_as_many_votes_as_another_has_not_won() -> None:
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    sets = FakeSets(train=(train, ["a", "b"]), test=(train, ["a", "b"]))
    assert knn(k=2)(sets).metrics["knn_acc1"] == 0.0


def test_recall_weighs_every_class_the_same_and_examples_name_neighbours() -> None:
    train = torch.eye(2)
    sets = FakeSets(train=(train, ["a", "b"]), test=(train[[0, 0, 0, 1, 0]], ["a", "a", "a", "b", "b"]))
    result = knn(k=1)(sets)
    assert result.metrics == {"knn_acc1": 0.8, "mean_per_class_recall": 0.75}
    assert result.chance == {"knn_acc1": 0.5, "mean_per_class_recall": 0.5}
    assert result.details["confused"] == [{"true": "b", "guess": "a", "count": 1}]
    last = result.details["examples"][-1]
    assert (last["position"], last["true"], last["guess"], last["right"]) == (4, "b", "a", False)
    assert last["found"][0] == {"position": 5, "caption": "a", "score": 1.0, "relevant": False}
    assert result.details["shards"] == ["test", "train"]
    assert result.details["pictures"] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"), [({"k": 0}, "k=0 must be"), ({"temperature": 0.0}, "temperature=0.0 must be")]
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NearestNeighbours("a", "b", **{"label": "cls", "k": 1, "temperature": 0.07} | change)


def test_all_vote_where_there_are_fewer_than_k() -> None:
    train = torch.eye(3)
    sets = FakeSets(train=(train, ["a", "b", "c"]), test=(train, ["a", "b", "c"]))
    found, whole = knn(k=20)(sets), knn(k=3)(sets)
    assert found == whole
    assert (found.metrics["knn_acc1"], found.notes["k"]) == (1.0, 3)


def test_check_says_what_is_wrong_with_the_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_shards(tmp_path, num_samples=12)

    def check(*, k: int = 3, label: str = "cls") -> None:
        train, test = f"{tmp_path}/0000[01].tar", f"{tmp_path}/00002.tar"
        NearestNeighbours(train, test, label=label, k=k, temperature=0.07).check()

    check()
    check(k=10)
    assert not caplog.records
    check(k=11)
    assert "has 10 samples, fewer than k=11; all of them vote" in caplog.text
    with pytest.raises(DataError, match=r"sample 000000 has json.no=None.*by `label`"):
        check(label="json.no")
    with pytest.raises(DataError, match=r"test.*does not exist|test.*matches no"):
        NearestNeighbours(
            f"{tmp_path}/00000.tar", f"{tmp_path}/9.tar", label="cls", k=1, temperature=1.0
        ).check()
