import statistics
from typing import Any

import pytest
import torch
from fake_embedder import FakeEmbedder

from vlm.errors import ConfigError, DataError
from vlm.evaluation import Retrieval
from vlm.evaluation.ranking import group_sizes
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
    chance = retrieval_chance("image", group_sizes(query_group, gallery_group), num_items=11)
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


def shared_captions() -> FakeEmbedder:
    """Captions of two pictures each, and a picture without any."""
    captions = [["a", "b"], ["b"], [], ["c", "a"]]
    return FakeEmbedder(
        texts={"a": [0.9, 1.0], "b": [0.0, 1.0], "c": [1.0, 0.0]},
        images=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.9, 0.1]],
        records=[{"key": str(row), "json": {"captions": own}} for row, own in enumerate(captions)],
    )


def test_equal_captions_are_one_query_where_they_are_merged() -> None:
    result = Retrieval("x.tar", "json.captions", relevance=None, merge_captions=True)(shared_captions())
    assert (result.num_samples, result.details["num_captions"]) == (4, 3)
    by_text, by_image = result.outcomes
    # a: pictures 0 and 3, before which stand 2 (1.9) and 1 (1.0); b: 1 ties with 2; c: 3 after 0 and 2
    assert by_text.values["image_retrieval_mean_rank"].tolist() == [3.0, 2.0, 3.0]
    assert by_text.picture.tolist() == [0, 0, 3]
    assert by_image.picture.tolist() == [0, 1, 3]  # 2 has nothing to find
    assert by_image.values["text_retrieval_mean_rank"].tolist() == [2.0, 2.0, 1.0]
    assert result.chance["image_retrieval_recall@1"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)
    assert result.chance["text_retrieval_recall@1"] == pytest.approx((2 / 3 + 1 / 3 + 2 / 3) / 3)
    query = result.details["images_found"][0]
    assert [(item["position"], item["relevant"]) for item in query["found"]] == [
        (2, False),
        (1, False),
        (3, True),
        (0, True),
    ]


def test_captions_are_merged_or_related_by_a_field() -> None:
    with pytest.raises(ConfigError, match="relevance=cls and merge_captions=true exclude each other"):
        Retrieval("x.tar", "txt", relevance="cls", merge_captions=True)


def test_a_data_set_without_any_caption_is_refused() -> None:
    data = FakeEmbedder(texts={}, images=[[1.0]], records=[{"key": "0", "json": {"captions": []}}])
    with pytest.raises(DataError, match=r"no sample of x.tar has a caption in \['json.captions'\]"):
        Retrieval("x.tar", "json.captions", relevance=None)(data)


def test_captions_longer_than_the_context_are_counted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    texts = {"short": [1.0], "a caption that is too long": [0.5]}
    records = [{"key": str(row), "txt": text} for row, text in enumerate(["short"] * 19 + [list(texts)[1]])]
    data = FakeEmbedder(texts=texts, images=[[1.0]] * 20, records=records)
    assert Retrieval("x.tar", "txt", relevance=None)(data).notes == {"truncated": 0.05}
    assert not caplog.messages
    data.records, data.rows = records[1:], data.rows[1:]
    Retrieval("x.tar", "txt", relevance=None)(data)
    assert caplog.messages == [
        "5 % of 19 captions are longer than the context of the model, which does not read their ends"
    ]
