import statistics
from typing import Any

import pytest
import torch
from fake_embedder import FakeEmbedder

from vlm.errors import DataError
from vlm.evaluation import Retrieval
from vlm.evaluation.retrieval import retrieval_chance


def data_set(*, seed: int) -> FakeEmbedder:
    """Nine images of four concepts with one to three captions each; scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    records, texts = [], {}
    for row in range(9):
        captions = [f"caption {row}.{number}" for number in range(1 + row % 3)]
        records.append({"key": str(row), "json": {"concept": f"c{row % 4}", "captions": captions}})
        for caption in captions:
            texts[caption] = torch.randint(-2, 3, (3,), generator=generator).tolist()
    images = torch.randint(-2, 3, (9, 3), generator=generator).tolist()
    return FakeEmbedder(texts=texts, images=images, records=records)


def slow_metrics(data: FakeEmbedder, *, by_concept: bool) -> dict[str, float]:
    captions = [(row, text) for row, record in enumerate(data.records) for text in record["json"]["captions"]]

    def related(a: int, b: int) -> bool:
        return a % 4 == b % 4 if by_concept else a == b

    def score(row: int, text: str) -> int:
        return sum(a * b for a, b in zip(data.rows[row], data.vectors[text], strict=True))

    def rank(values: list[tuple[int, bool]]) -> int:
        best = max(value for value, good in values if good)
        return 1 + sum(not good and value >= best for value, good in values)

    ranks = {
        "image": [
            rank([(score(row, text), related(row, owner)) for row in range(9)]) for owner, text in captions
        ],
        "text": [
            rank([(score(row, text), related(row, owner)) for owner, text in captions]) for row in range(9)
        ],
    }
    metrics: dict[str, float] = {}
    for found, values in ranks.items():
        for k in (1, 5, 10):
            metrics[f"{found}_retrieval_recall@{k}"] = sum(value <= k for value in values) / len(values)
        metrics[f"{found}_retrieval_mean_rank"] = statistics.mean(values)
        metrics[f"{found}_retrieval_median_rank"] = statistics.median(values)
    return metrics


@pytest.mark.parametrize("by_concept", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_slow_loops_with_ties_both_ways(seed: int, by_concept: bool) -> None:
    data = data_set(seed=seed)
    result = Retrieval("x.tar", "json.captions", relevance="json.concept" if by_concept else None)(data)
    assert result.metrics == pytest.approx(slow_metrics(data, by_concept=by_concept))
    assert result.num_samples == 9


def test_chance_equals_the_mean_over_shuffled_galleries() -> None:
    query_group, gallery_group = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7])
    chance = retrieval_chance("image", query_group, gallery_group)
    generator = torch.Generator().manual_seed(0)
    ranks = torch.tensor(
        [
            [(gallery_group[order] == group).nonzero()[0].item() + 1 for group in query_group]
            for order in (torch.randperm(11, generator=generator) for _ in range(4000))
        ],
        dtype=torch.float64,
    )
    for k in (1, 5, 10):
        assert chance[f"image_retrieval_recall@{k}"] == pytest.approx(
            (ranks <= k).double().mean().item(), abs=0.02
        )
    assert chance["image_retrieval_mean_rank"] == pytest.approx(ranks.mean().item(), rel=0.02)


def test_the_lines_of_a_text_are_captions_of_their_own() -> None:
    data = FakeEmbedder(
        texts={"one": [1.0, 0.0], "two": [1.0, 0.1], "three": [0.0, 1.0]},
        images=[[1.0, 0.0], [0.0, 1.0]],
        records=[{"key": "0", "txt": "one\ntwo\n"}, {"key": "1", "txt": "three"}],
    )
    result = Retrieval("x.tar", "txt", relevance=None)(data)
    assert result.details["num_captions"] == 3
    assert result.metrics["image_retrieval_recall@1"] == 1.0


def test_examples_tell_what_was_found() -> None:
    data = data_set(seed=0)
    details = Retrieval("x.tar", ["json.captions"], relevance="json.concept")(data).details
    query = details["images_found"][0]
    assert query["caption"] == "caption 0.0"
    for item in query["found"]:
        assert item["relevant"] == (item["position"] % 4 == 0)
        assert item["caption"] == f"caption {item['position']}.0"
        assert item["position"] in details["pictures"]
    for item in details["captions_found"][1]["found"]:
        assert (
            item["caption"]
            == [text for record in data.records for text in record["json"]["captions"]][item["position"]]
        )


@pytest.mark.parametrize(
    ("record", "message"), [({}, "sample 7 has no caption"), ({"txt": "a"}, "json.concept=None")]
)
def test_a_sample_without_caption_or_relevance_is_named(record: dict[str, Any], message: str) -> None:
    data = FakeEmbedder(texts={"a": [1.0]}, images=[[1.0]], records=[{"key": "7", **record}])
    with pytest.raises(DataError, match=message):
        Retrieval("x.tar", "txt", relevance="json.concept")(data)
