import logging
import random
import statistics
from pathlib import Path

import pytest
import torch
from fake_embedder import FakeSets
from tiny import write_tiny_shards

from vlm.errors import ConfigError, DataError
from vlm.evaluation import ImageRetrieval, image_retrieval
from vlm.evaluation.image_retrieval import Queries, retrieval_chance


def tied_rows(count: int, *, seed: int) -> torch.Tensor:
    """Small whole numbers: many exact ties."""
    return torch.randint(-2, 3, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


def retrieval(gallery: str | None = None) -> ImageRetrieval:
    return ImageRetrieval("query", gallery, label="cls", recall_at=[1, 2, 5])


def slow_metrics(
    query: torch.Tensor, wanted: list[int], gallery: torch.Tensor, offered: list[int], *, itself: bool
) -> dict[str, float]:
    """One list for each query, sorted; of equal scores the irrelevant first."""
    found: dict[str, list[float]] = {}
    for row, (vector, label) in enumerate(zip(query, wanted, strict=True)):
        items = [
            (sum(float(a) * float(b) for a, b in zip(vector, other, strict=True)), offered[place] == label)
            for place, other in enumerate(gallery)
            if not (itself and place == row)
        ]
        hits = [good for _, good in sorted(items, key=lambda item: (-item[0], item[1]))]
        if not any(hits):
            continue
        num_relevant = sum(hits)
        precision = [sum(hits[: place + 1]) / (place + 1) for place in range(len(hits))]
        at_hits = [value for value, hit in zip(precision, hits, strict=True) if hit]
        among_first = [value for value, hit in list(zip(precision, hits, strict=True))[:num_relevant] if hit]
        for k in (1, 2, 5):
            found.setdefault(f"image_to_image_recall@{k}", []).append(any(hits[:k]))
        found.setdefault("map", []).append(sum(at_hits) / num_relevant)
        found.setdefault("map@r", []).append(sum(among_first) / num_relevant)
    return {name: statistics.mean(map(float, values)) for name, values in found.items()}


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_one_set_equal_slow_loops_with_ties(seed: int) -> None:
    rows = tied_rows(30, seed=seed)
    labels = [0] * 9 + [1, 2, 3, 4] * 4 + [5, 5, 6, 7, 8]
    random.Random(seed).shuffle(labels)
    result = retrieval()(FakeSets(query=(rows, labels)))
    assert result.metrics == pytest.approx(slow_metrics(rows, labels, rows, labels, itself=True))
    assert (result.num_samples, result.notes) == (27, {"num_gallery": 30, "num_left_out": 3})


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_a_gallery_equal_slow_loops_with_ties(seed: int) -> None:
    query, gallery = tied_rows(14, seed=seed), tied_rows(30, seed=seed + 50)
    wanted, offered = [row % 7 for row in range(14)], [row % 6 for row in range(30)]
    result = retrieval("gallery")(FakeSets(query=(query, wanted), gallery=(gallery, offered)))
    assert result.metrics == pytest.approx(slow_metrics(query, wanted, gallery, offered, itself=False))
    assert (result.num_samples, result.notes) == (12, {"num_gallery": 30, "num_left_out": 2})


@pytest.mark.parametrize("entries", [1, 7 * 30])
def test_tiles_do_not_change_the_scores(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = FakeSets(query=(tied_rows(30, seed=0), [row % 4 for row in range(30)]))
    whole = retrieval()(sets)
    monkeypatch.setattr(image_retrieval, "TILE_ENTRIES", entries)
    assert retrieval()(sets) == whole


@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan])
def test_a_model_without_opinion_finds_everything_last(value: float) -> None:
    labels = [row % 4 for row in range(16)]
    metrics = retrieval()(FakeSets(query=(torch.full((16, 3), value), labels))).metrics
    assert metrics["image_to_image_recall@5"] == 0.0
    assert metrics["map"] == pytest.approx((1 / 13 + 2 / 14 + 3 / 15) / 3)
    assert metrics["map@r"] == 0.0


def test_chance_equals_the_mean_over_shuffled_galleries() -> None:
    labels = [0] * 2 + [1] * 3 + [2] * 6 + [3]
    query = torch.zeros(12, 1)
    generator = random.Random(0)
    sums: dict[str, float] = {}
    for _ in range(600):
        scores = torch.tensor([generator.random() for _ in labels])
        # a query of ones sees the gallery in the order of its numbers
        found = slow_metrics(query + 1, labels, scores[:, None], labels, itself=True)
        sums = {name: sums.get(name, 0.0) + value / 600 for name, value in found.items()}
    group = torch.tensor(labels)
    chance = retrieval_chance(
        Queries(group=group, gallery_group=group, num_relevant=group.bincount()[group] - 1, itself=True),
        recall_at=[1, 2, 5],
    )
    assert chance == pytest.approx(sums, abs=0.02)


def test_examples_leave_the_query_out_and_count_on_into_the_gallery() -> None:
    rows, labels = tied_rows(20, seed=0), [row % 4 for row in range(20)]
    alone = retrieval()(FakeSets(query=(rows, labels))).details
    for example in alone["examples"]:
        assert example["position"] not in {item["position"] for item in example["found"]}
        assert len(example["found"]) == 5
        for item in example["found"]:
            assert item["relevant"] == (labels[item["position"]] == labels[example["position"]])
    apart = retrieval("gallery")(
        FakeSets(query=(rows[:6], labels[:6]), gallery=(rows[6:], labels[6:]))
    ).details
    assert apart["shards"] == ["query", "gallery"]
    for example in apart["examples"]:
        for item in example["found"]:
            assert item["position"] >= 6
            assert item["relevant"] == (labels[item["position"]] == labels[example["position"]])


def test_queries_that_are_left_out_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        retrieval()(FakeSets(query=(tied_rows(5, seed=0), ["a", "a", "b", "b", "c"])))
    assert "1 of 5 queries have nothing of their class to find" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a", "a"], "every sample of query=query has cls='a'"),
        (["a", "b", "c"], "no sample of query=query has another of its cls"),
        (["a", "a", None], "sample 2 has cls=None"),
    ],
)
def test_labels_with_nothing_to_find_are_refused(labels: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        retrieval()(FakeSets(query=(tied_rows(3, seed=0), labels)))


def test_recalls_at_nothing_are_refused() -> None:
    for recall_at in ([], [0, 1]):
        with pytest.raises(ConfigError, match="recall_at="):
            ImageRetrieval("x", None, label="cls", recall_at=recall_at)


def test_check_refuses_a_gallery_with_the_queries_in_it(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path, num_samples=12)
    one = f"{tmp_path}/00001.tar"
    ImageRetrieval(shards, None, label="cls", recall_at=[1]).check()
    ImageRetrieval(one, f"{tmp_path}/00000.tar", label="cls", recall_at=[1]).check()
    with pytest.raises(DataError, match=r"query and gallery both hold .*00001.tar"):
        ImageRetrieval(one, shards, label="cls", recall_at=[1]).check()
