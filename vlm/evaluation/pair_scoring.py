"""Scores of pictures with captions, and how they agree with what people say of them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from vlm.data import lookup
from vlm.errors import DataError
from vlm.evaluation.evaluator import Result, parts, records_of, spread
from vlm.evaluation.fields import captions_of
from vlm.evaluation.outcomes import outcomes
from vlm.evaluation.rank_correlation import area_under_curve, kendall, spearman
from vlm.evaluation.truncation import embedded
from vlm.inference import Embedder, Pictures

SCALE = 2.5
NUM_EXAMPLES = 6
"""Of the pairs with the highest scores, and of those with the lowest."""
BLOCK_ROWS = 1 << 16
"""Pairs whose cosine is computed at once."""


class _Pairs(NamedTuple):
    """Captions, the picture of each, and what people say of the two."""

    captions: list[str]
    picture: list[int]
    ratings: Float64[ndarray, " n"] | None


class PairScoring:
    """The score of each picture with each of its captions, 2.5 · max(cosine, 0), and its mean, `clip_score`.

    With ratings there are the rank correlations of cosines and ratings, `kendall_tau_b`, `kendall_tau_c` and
    `spearman`; where all ratings are 0 or 1 there is `auc` instead, how often a pair rated 1 scores above one
    rated 0. Equal cosines count as equal.

    Args:
        shards: the data set.
        caption: field of a sample with its caption, or a list of captions.
        rating: field with a number, or a list with one for each caption; None where nobody rated them.

    Source: arXiv:2104.08718, section 3.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(self, shards: Pictures, caption: str, *, rating: str | None) -> None:
        self.shards = shards
        self.caption = caption
        self.rating = rating

    def check(self) -> None:
        self._pairs(records_of(self.shards))

    def __call__(self, embedder: Embedder) -> Result:
        images = embedder.images(self.shards)
        pairs = self._pairs(images.records)
        texts, truncated = embedded(pairs.captions, embedder, what="captions")
        rows = torch.split(torch.tensor(pairs.picture), BLOCK_ROWS)
        products = [
            (images.features[own].double() * text.double()).sum(dim=1).float()
            for own, text in zip(rows, torch.split(texts, BLOCK_ROWS), strict=True)
        ]
        cosine = torch.cat(products).double().numpy()
        score = SCALE * np.maximum(cosine, 0)
        rated, chance = _agreement(cosine, pairs.ratings)
        examples = _examples(score, pairs)
        return Result(
            task="pair_scoring",
            metrics={"clip_score": float(score.mean()), **rated},
            chance=chance,
            num_samples=len(images.records),
            notes={
                "num_pairs": len(score),
                "truncated": truncated,
            },
            details={
                "shards": parts(self.shards),
                "examples": examples,
                "pictures": sorted({row["position"] for rows in examples.values() for row in rows}),
            },
            outcomes=(outcomes("caption", {"clip_score": score}, picture=pairs.picture),),
        )

    def _pairs(self, records: Sequence[Mapping[str, Any]]) -> _Pairs:
        captions: list[str] = []
        picture: list[int] = []
        ratings: list[float] = []
        for position, record in enumerate(records):
            own = captions_of(record, self.caption)
            if not own:
                raise DataError(f"sample {record['key']} has no caption in {self.caption}; set `caption`")
            captions += own
            picture += [position] * len(own)
            if self.rating is not None:
                ratings += self._ratings(record, self.rating, len(own))
        if ratings and len(set(ratings)) == 1:
            raise DataError(
                f"every pair of {self.shards} has {self.rating}={ratings[0]:g}; name another field"
            )
        return _Pairs(captions, picture, np.array(ratings) if self.rating is not None else None)

    def _ratings(self, record: Mapping[str, Any], field: str, count: int) -> list[float]:
        value = lookup(record, field)
        found: list[Any] = value if isinstance(value, list) else [value]
        if len(found) != count or not all(isinstance(rating, int | float) for rating in found):
            raise DataError(
                f"sample {record['key']} has {field}={value!r:.80}; expected a number for each of its "
                f"{count} captions in {self.caption}; set `rating`"
            )
        return [float(rating) for rating in found]


def _agreement(
    cosine: Float64[ndarray, " n"], ratings: Float64[ndarray, " n"] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics, and what guessing gets."""
    if ratings is None:
        return {}, {}
    cosine = np.nan_to_num(cosine, nan=-np.inf)
    if set(ratings) <= {0.0, 1.0}:
        return {"auc": area_under_curve(cosine, ratings == 1)}, {"auc": 0.5}
    tau = kendall(cosine, ratings)
    metrics = {
        "kendall_tau_b": tau.tau_b,
        "kendall_tau_c": tau.tau_c,
        "spearman": spearman(cosine, ratings),
    }
    return metrics, dict.fromkeys(metrics, 0.0)


def _examples(score: Float64[ndarray, " n"], pairs: _Pairs) -> dict[str, list[dict[str, Any]]]:
    """Pairs from the quarter with the highest scores, and from that with the lowest."""
    order = np.argsort(-score, kind="stable").tolist()
    quarter = max(1, len(order) // 4)
    return {
        kind: [
            {
                "position": pairs.picture[part[place]],
                "caption": pairs.captions[part[place]],
                "score": float(score[part[place]]),
                "rating": None if pairs.ratings is None else float(pairs.ratings[part[place]]),
            }
            for place in spread(len(part), wanted=NUM_EXAMPLES)
        ]
        for kind, part in (("highest", order[:quarter]), ("lowest", order[-quarter:]))
    }
