"""Retrieval of pictures by pictures: those of the query's class have to come first."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import Result, parts, records_of, spread
from vlm.evaluation.fields import label_of
from vlm.evaluation.labelled import labels_of, numbered, refuse_common_pictures
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.evaluation.over_ranks import over_ranks
from vlm.evaluation.ranking import chance_of_hit, expected_precision, group_sizes, scores, top_matches
from vlm.inference import Embedder, Pictures

TILE_ENTRIES = 1 << 21
"""Scores held at once, and about eight times their bytes; at least one query is."""
NUM_QUERIES = 8
NUM_SHOWN = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """Which queries have something to find, and what belongs to what."""

    group: Int64[Tensor, " n"]
    """The class of every query."""
    gallery_group: Int64[Tensor, " m"]
    num_relevant: Int64[Tensor, " n"]
    """In the gallery, without the query itself."""
    itself: bool
    """Whether the gallery is the queries, so that each has to be left out of what it finds."""

    @property
    def counted(self) -> Int64[Tensor, " q"]:
        """Positions of the queries with a relevant item."""
        return self.num_relevant.nonzero().flatten()


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Of each of q queries."""

    rank: Int64[Tensor, " q"]
    """Of the best relevant item."""
    average: Float[Tensor, " q"]
    """The precision at each relevant item, averaged over them."""
    average_at_r: Float[Tensor, " q"]
    """The same, counting 0 for the relevant items that are not among the first r, r being how many there
    are."""


class ImageRetrieval:
    """Recall and mean average precision of finding the pictures of a query's class.

    A query never finds itself. Queries that are alone in their class are left out of the scores and counted
    in the note `num_left_out`; they stay in the gallery. Ties are pessimistic, as in `rank_relevant`.

    Args:
        query: the pictures that search.
        gallery: of those that are searched; None for the queries themselves.
        label: field of a sample that holds its class, such as `cls`.
        recall_at: how many of the first items may hold a relevant one.

    Source: mean average precision at r: arXiv:2003.08505, section 4.2.

    Raises:
        ConfigError: `recall_at` is empty or holds a number below 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, query: Pictures, gallery: Pictures | None, *, label: str, recall_at: Sequence[int]
    ) -> None:
        if not recall_at or min(recall_at) < 1:
            raise ConfigError(f"recall_at={list(recall_at)} has to be a list of numbers from 1 on")
        self.query = query
        self.gallery = gallery
        self.label = label
        self.recall_at = sorted(set(recall_at))

    def check(self) -> None:
        gallery = None
        if self.gallery is not None:
            refuse_common_pictures({"query": self.query, "gallery": self.gallery})
            gallery = records_of(self.gallery, key="gallery")
        self._queries(records_of(self.query, key="query"), gallery)

    def __call__(self, embedder: Embedder) -> Result:
        query = embedder.images(self.query)
        gallery = query if self.gallery is None else embedder.images(self.gallery)
        queries = self._queries(query.records, None if self.gallery is None else gallery.records)
        counted = queries.counted
        found = average_precision(query.features, gallery.features, queries, embedder)
        if embedder.topology.is_main and len(counted) < len(queries.group):
            log.warning(
                "image retrieval: %d of %d queries have nothing of their class to find and are left out",
                *(len(queries.group) - len(counted), len(queries.group)),
            )
        examples = self._examples(query.features, gallery.features, queries, found.rank)
        shown = {item["position"] for example in examples for item in example["found"]}
        return Result(
            task="image_retrieval",
            metrics=retrieval_metrics(found, recall_at=self.recall_at),
            chance=retrieval_chance(queries, recall_at=self.recall_at),
            num_samples=len(counted),
            notes={
                "num_gallery": len(queries.gallery_group),
                "num_left_out": len(queries.group) - len(counted),
            },
            details={
                "shards": parts(self.query, self.gallery or []),
                "examples": examples,
                "pictures": sorted(shown | {example["position"] for example in examples}),
            },
            outcomes=(self._outcomes(found, counted, query.records),),
        )

    def _outcomes(self, found: Precision, counted: Tensor, records: list[dict[str, Any]]) -> Outcomes:
        recalls = {f"image_to_image_recall@{k}": found.rank <= k for k in self.recall_at}
        return outcomes(
            "picture",
            recalls | {"map": found.average, "map@r": found.average_at_r},
            picture=counted,
            category=[str(label_of(records[row], self.label)) for row in counted.tolist()],
        )

    def _queries(self, query: list[dict[str, Any]], gallery: list[dict[str, Any]] | None) -> Queries:
        wanted = labels_of(query, self.label)
        offered = wanted if gallery is None else labels_of(gallery, self.label)
        number = numbered([*wanted, *offered])
        if gallery is None and len(number) < 2:
            raise DataError(
                f"every sample of query={self.query} has {self.label}={wanted[0]!r}; name the field that "
                "holds the class by `label`, or shards with at least two classes"
            )
        group = torch.tensor([number[value] for value in wanted])
        gallery_group = torch.tensor([number[value] for value in offered])
        num_relevant = group_sizes(group, gallery_group) - int(gallery is None)
        if not bool(num_relevant.any()):
            raise DataError(
                f"no sample of query={self.query} has another of its {self.label} in the gallery, so there "
                "is nothing to find; name the field that holds the class by `label`"
            )
        return Queries(
            group=group, gallery_group=gallery_group, num_relevant=num_relevant, itself=gallery is None
        )

    def _examples(
        self, query: Tensor, gallery: Tensor, queries: Queries, rank: Tensor
    ) -> list[dict[str, Any]]:
        """A few queries and what each found first; a gallery that is not the queries stands behind them."""
        chosen = spread(len(rank), wanted=NUM_QUERIES)
        rows = queries.counted[chosen].tolist()
        similarity, found = top_matches(query[rows], gallery, k=NUM_SHOWN + queries.itself)
        offset = 0 if queries.itself else len(query)
        return [
            {
                "position": row,
                "rank": int(rank[place]),
                "found": [
                    {
                        "position": offset + item,
                        "score": score,
                        "relevant": bool(queries.gallery_group[item] == queries.group[row]),
                    }
                    for item, score in zip(items, item_scores, strict=True)
                    if not (queries.itself and item == row)
                ][:NUM_SHOWN],
            }
            for place, row, items, item_scores in zip(
                chosen, rows, found.tolist(), similarity.tolist(), strict=True
            )
        ]


def average_precision(
    query: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"], queries: Queries, embedder: Embedder
) -> Precision:
    """Of the queries that count, in their order; the ranks share them."""
    device = embedder.device
    everything = gallery.to(device).double()
    members = queries.gallery_group.argsort(stable=True)  # class by class
    counts = queries.gallery_group.bincount(minlength=int(queries.group.max()) + 1)
    first = counts.cumsum(0) - counts

    def work(rows: Tensor) -> tuple[ndarray, ...]:
        group = queries.group[rows, None]
        place = torch.arange(int(counts[group].max()))
        present = place < counts[group]
        item = members[(first[group] + place).clamp(max=len(members) - 1)]
        relevant = present & (item != rows[:, None]) if queries.itself else present
        parts = _precision_block(
            scores(query[rows].to(device), everything),
            item.to(device),
            present=present.to(device),
            relevant=relevant.to(device),
        )
        return tuple(part.cpu().numpy() for part in parts)

    counted, step = queries.counted, max(1, TILE_ENTRIES // len(gallery))
    blocks = [counted[start : start + step] for start in range(0, len(counted), step)]
    parts = over_ranks(work, blocks, embedder, what="image retrieval")
    rank, average, average_at_r = (
        torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)
    )
    return Precision(rank=rank, average=average, average_at_r=average_at_r)


def _precision_block(
    similarity: Tensor, item: Tensor, *, present: Tensor, relevant: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of the first relevant item, average precision, and that at r.

    Args:
        similarity: [b, m], to the whole gallery.
        item: [b, s], positions of the items of the query's class, where `present`; among them may be the
            query itself, which is not `relevant`.
    """
    # nan is below everything in a relevant item and above everything in another.
    least = torch.finfo(similarity.dtype).min
    wanted = similarity.gather(1, item).nan_to_num_(nan=least).masked_fill_(~relevant, torch.inf)
    wanted = wanted.sort(dim=1).values  # ascending, the relevant ones first
    others = similarity.nan_to_num_(nan=torch.inf)
    # Items that are absent repeat one of the gallery, so what is written there must not depend on the order.
    mask = torch.zeros_like(others, dtype=torch.int8).scatter_add_(1, item, present.to(torch.int8))
    others.masked_fill_(mask > 0, -torch.inf)
    below = torch.searchsorted(wanted, others, right=True)  # relevant items that an irrelevant one precedes
    num_slots = wanted.shape[1] + 1
    row = torch.arange(len(below), device=below.device)[:, None] * num_slots
    histogram = (below + row).flatten().bincount(minlength=len(below) * num_slots).view(-1, num_slots)
    before = histogram.flip(1).cumsum(1).flip(1)[:, 1:]  # irrelevant items before each relevant one
    num_relevant = relevant.sum(dim=1, keepdim=True)
    order = num_relevant - torch.arange(wanted.shape[1], device=wanted.device)  # 1 for the best
    rank = torch.where(order > 0, before + order, 1)
    precision = torch.where(order > 0, order / rank.double(), 0.0)
    within = precision.masked_fill(rank > num_relevant, 0.0)
    best = rank.gather(1, num_relevant - 1).squeeze(1)
    num_relevant = num_relevant.squeeze(1)
    return best, precision.sum(dim=1) / num_relevant, within.sum(dim=1) / num_relevant


def retrieval_metrics(found: Precision, *, recall_at: Sequence[int]) -> dict[str, float]:
    """Recalls, mean average precision over the whole gallery and at r."""
    recalls = {f"image_to_image_recall@{k}": (found.rank <= k).double().mean().item() for k in recall_at}
    return recalls | {"map": found.average.mean().item(), "map@r": found.average_at_r.mean().item()}


def retrieval_chance(queries: Queries, *, recall_at: Sequence[int]) -> dict[str, float]:
    """What a shuffled gallery gets in `retrieval_metrics`."""
    relevant = queries.num_relevant[queries.counted]
    items = len(queries.gallery_group) - int(queries.itself)
    recalls = {f"image_to_image_recall@{k}": chance_of_hit(relevant, num_items=items, k=k) for k in recall_at}
    whole = expected_precision(relevant, torch.full_like(relevant, items), num_items=items)
    return recalls | {"map": whole, "map@r": expected_precision(relevant, relevant, num_items=items)}
