"""Retrieval between images and captions, both ways."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vlm.evaluation.evaluator import Result, records_of, spread
from vlm.evaluation.fields import Label, every_caption, label_of
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.evaluation.ranking import chance_of_hit, group_sizes, rank_relevant, top_matches
from vlm.inference import Embedder

RECALLS = (1, 5, 10)
NUM_QUERIES = 6
NUM_SHOWN = 5


class Retrieval:
    """Recall of the right caption of an image, and of the right image of a caption.

    Args:
        shards: pattern, or list of patterns, of the data set.
        captions: fields of a sample that hold its captions: a text, a text with one caption a line, or a list
            of texts. Every caption counts.
        relevance: field by which a caption and an image belong together, such as `json.concept`; None where
            a caption belongs to its own image alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(
        self, shards: str | Sequence[str], captions: str | Sequence[str], *, relevance: str | None
    ) -> None:
        self.shards = shards
        self.captions = [captions] if isinstance(captions, str) else list(captions)
        self.relevance = relevance

    def check(self) -> None:
        records = records_of(self.shards)
        self._captions(records)
        self._groups(records)

    def __call__(self, embedder: Embedder) -> Result:
        images = embedder.images(self.shards)
        captions, owner = self._captions(images.records)
        image_group = self._groups(images.records)
        caption_group = image_group[owner]
        texts = embedder.texts(captions)
        features = images.features
        own = [captions[row] for row in torch.searchsorted(owner, torch.arange(len(features))).tolist()]
        by_text = _Search(texts, features, caption_group, image_group, captions, own)
        by_image = _Search(features, texts, image_group, caption_group, own, captions)
        images_found, captions_found = by_text.examples(), by_image.examples()
        shown = {item["position"] for query in images_found for item in query["found"]}
        return Result(
            task="zeroshot_retrieval",
            metrics=retrieval_metrics("image", by_text.ranks) | retrieval_metrics("text", by_image.ranks),
            chance=retrieval_chance("image", caption_group, image_group)
            | retrieval_chance("text", image_group, caption_group),
            num_samples=len(images.records),
            details={
                "shards": self.shards,
                "num_captions": len(captions),
                "images_found": images_found,
                "captions_found": captions_found,
                "pictures": sorted(shown | {query["position"] for query in captions_found}),
            },
            outcomes=(
                _outcomes("caption", "image", by_text.ranks, picture=owner),
                _outcomes("picture", "text", by_image.ranks),
            ),
        )

    def _captions(self, records: list[dict[str, Any]]) -> tuple[list[str], Int64[Tensor, " m"]]:
        """Every caption, and the position of the image it belongs to."""
        captions: list[str] = []
        owner: list[int] = []
        for position, record in enumerate(records):
            own = every_caption(record, self.captions)
            captions += own
            owner += [position] * len(own)
        return captions, torch.tensor(owner)

    def _groups(self, records: list[dict[str, Any]]) -> Int64[Tensor, " n"]:
        if self.relevance is None:
            return torch.arange(len(records))
        numbers: dict[Label, int] = {}
        values = [label_of(record, self.relevance) for record in records]
        return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


class _Search:
    """Every query against the whole gallery; each row of either has a group and a caption to show."""

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        query_group: Tensor,
        gallery_group: Tensor,
        query_captions: list[str],
        gallery_captions: list[str],
    ) -> None:
        self.queries, self.gallery = queries, gallery
        self.query_group, self.gallery_group = query_group, gallery_group
        self.query_captions, self.gallery_captions = query_captions, gallery_captions
        self.ranks = rank_relevant(
            queries, gallery, query_group=query_group, gallery_group=gallery_group
        ).rank

    def examples(self) -> list[dict[str, Any]]:
        """A few queries, each with the items found first for it."""
        chosen = spread(len(self.queries), wanted=NUM_QUERIES)
        scores, found = top_matches(self.queries[chosen], self.gallery, k=NUM_SHOWN)
        return [
            {
                "position": query,
                "caption": self.query_captions[query],
                "rank": int(self.ranks[query]),
                "found": [
                    {
                        "position": item,
                        "caption": self.gallery_captions[item],
                        "score": score,
                        "relevant": bool(self.gallery_group[item] == self.query_group[query]),
                    }
                    for item, score in zip(items, item_scores, strict=True)
                ],
            }
            for query, items, item_scores in zip(chosen, found.tolist(), scores.tolist(), strict=True)
        ]


def _outcomes(query: str, found: str, rank: Tensor, *, picture: Tensor | None = None) -> Outcomes:
    recalls = {f"{found}_retrieval_recall@{k}": rank <= k for k in RECALLS}
    return outcomes(query, recalls | {f"{found}_retrieval_mean_rank": rank}, picture=picture)


def retrieval_metrics(found: str, rank: Int64[Tensor, " n"]) -> dict[str, float]:
    """Recalls, mean and median rank where `found` ("image" or "text") is what the gallery holds.

    The median of an even number of ranks is the mean of the two in the middle.
    """
    ranks = rank.double()
    metrics = {f"{found}_retrieval_recall@{k}": (rank <= k).double().mean().item() for k in RECALLS}
    metrics[f"{found}_retrieval_mean_rank"] = ranks.mean().item()
    metrics[f"{found}_retrieval_median_rank"] = float(np.median(ranks.numpy()))
    return metrics


def retrieval_chance(
    found: str, query_group: Int64[Tensor, " n"], gallery_group: Int64[Tensor, " m"]
) -> dict[str, float]:
    """What a shuffled gallery gets in the recalls and the mean rank of `retrieval_metrics`."""
    relevant, items = group_sizes(query_group, gallery_group), len(gallery_group)
    chance = {f"{found}_retrieval_recall@{k}": chance_of_hit(relevant, num_items=items, k=k) for k in RECALLS}
    chance[f"{found}_retrieval_mean_rank"] = ((items + 1) / (relevant.double() + 1)).mean().item()
    return chance
