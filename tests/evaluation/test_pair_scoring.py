from typing import Any

import pytest
import torch
from fake_embedder import FakeEmbedder

from vlm.errors import DataError
from vlm.evaluation import PairScoring
from vlm.evaluation.rank_correlation import area_under_curve, kendall, spearman

VECTORS = {"near": [1.0, 0.0], "oblique": [0.6, 0.8], "far": [-1.0, 0.0]}


def pairs(*ratings: list[float] | float | None) -> FakeEmbedder:
    captions: list[list[str] | str] = [["near", "far"], "oblique", ["near", "oblique"]]
    records = [
        {"key": str(row), "json": {"captions": own, "rating": rating}}
        for row, (own, rating) in enumerate(zip(captions, ratings or [None] * 3, strict=True))
    ]
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    return FakeEmbedder(texts=VECTORS, images=images.tolist(), records=records)


COSINES = [1.0, -1.0, 0.8, 0.5**0.5, 1.4 * 0.5**0.5]


def scored(data: FakeEmbedder, *, rating: str | None = "json.rating") -> Any:
    return PairScoring("x.tar", "json.captions", rating=rating)(data)


def test_the_score_is_the_mean_of_positive_cosines_times_two_and_a_half() -> None:
    result = scored(pairs(), rating=None)
    expected = [2.5 * max(cosine, 0) for cosine in COSINES]
    assert result.metrics == {"clip_score": pytest.approx(sum(expected) / 5)}
    assert result.chance == {}
    (rows,) = result.outcomes
    assert rows.values["clip_score"].tolist() == pytest.approx(expected)
    assert (rows.query, rows.picture.tolist()) == ("caption", [0, 0, 1, 2, 2])
    assert result.notes == {"num_pairs": 5, "truncated": 0.0}
    assert result.details["examples"]["lowest"][0]["caption"] == "far"
    assert result.details["examples"]["highest"] == [
        {"position": 0, "caption": "near", "score": 2.5, "rating": None}
    ]


def test_ratings_are_compared_in_rank() -> None:
    ratings = [3.0, 1.0, 2.0, 2.0, 4.0]
    result = scored(pairs([3, 1], 2, [2.0, 4.0]))
    cosine, rated = (torch.tensor(values).double().numpy() for values in (COSINES, ratings))
    tau = kendall(cosine, rated)
    expected = {"kendall_tau_b": tau.tau_b, "kendall_tau_c": tau.tau_c, "spearman": spearman(cosine, rated)}
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)
    assert result.chance == dict.fromkeys(expected, 0.0)


def test_binary_ratings_give_an_area() -> None:
    result = scored(pairs([1, 0], 0, [0, 1]))
    expected = area_under_curve(
        torch.tensor(COSINES).double().numpy(), torch.tensor([1, 0, 0, 0, 1]).bool().numpy()
    )
    assert result.metrics["auc"] == expected
    assert result.chance == {"auc": 0.5}
    assert result.metrics.keys() == {"clip_score", "auc"}


def test_a_model_without_opinion_agrees_with_nothing() -> None:
    data = pairs([3, 1], 2, [2, 4])
    data.rows = [[0.0, 0.0]] * 3
    metrics = scored(data).metrics
    assert (metrics["clip_score"], metrics["kendall_tau_b"], metrics["spearman"]) == (0, 0, 0)
    data.rows = [[torch.nan, torch.nan]] * 3
    assert scored(data).metrics["kendall_tau_c"] == 0


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (([3], 2, [2, 4]), r"sample 0 has json.rating=\[3\]; expected a number for each of its 2 captions"),
        (([3, 1], None, [2, 4]), r"sample 1 has json.rating=None; expected a number for each of its 1"),
        (([2, 2], 2, [2, 2]), r"every pair of x.tar has json.rating=2; name another field"),
    ],
)
def test_ratings_that_fit_no_captions_are_refused(ratings: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scored(pairs(*ratings))


def test_a_picture_without_a_caption_is_named() -> None:
    with pytest.raises(DataError, match="sample 0 has no caption in txt; set `caption`"):
        PairScoring("x.tar", "txt", rating=None)(pairs())
