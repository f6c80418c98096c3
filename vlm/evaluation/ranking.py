"""Where the best relevant item of a gallery stands for each query: what every accuracy and recall counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BLOCK_ENTRIES = 1 << 26
"""Scores held at once: 256 MiB, whatever the sizes of queries and gallery."""
BLOCK_QUERIES = 4096
TILE_ITEMS = 2048
"""Of the gallery that are in double precision at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """For each of n queries, positions in the gallery and the place of its best relevant item."""

    rank: Int64[Tensor, " n"]
    """1 + the number of irrelevant items that score at least as high as the best relevant one."""
    best: Int64[Tensor, " n"]
    """The best relevant item."""
    rival: Int64[Tensor, " n"]
    """The best irrelevant item; -1 where every item is relevant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevant:
    """Which of m items each of n queries is to find: a list for each of g groups of queries."""

    group: Int64[Tensor, " n"]
    """The group of each query."""
    first: Int64[Tensor, " g"]
    """Where the list of each group begins in `items`."""
    count: Int64[Tensor, " g"]
    items: Int64[Tensor, " r"]

    @classmethod
    def of_groups(cls, query_group: Int64[Tensor, " n"], gallery_group: Int64[Tensor, " m"]) -> "Relevant":
        """An item is relevant to the queries of its group."""
        highest = int(torch.cat([query_group, gallery_group]).max())
        count = gallery_group.bincount(minlength=highest + 1)
        return cls(
            group=query_group,
            first=count.cumsum(0) - count,
            count=count,
            items=gallery_group.argsort(stable=True),
        )

    @classmethod
    def of_pairs(
        cls, query: Int64[Tensor, " r"], item: Int64[Tensor, " r"], *, num_queries: int
    ) -> "Relevant":
        """Each pair is one of a query and an item that is relevant to it; no pair stands twice."""
        count = query.bincount(minlength=num_queries)
        return cls(
            group=torch.arange(num_queries),
            first=count.cumsum(0) - count,
            count=count,
            items=item[query.argsort(stable=True)],
        )

    @property
    def counts(self) -> Int64[Tensor, " n"]:
        """How many items are relevant to each query."""
        return self.count[self.group]

    def listed(self, rows: slice) -> tuple[Int64[Tensor, "b s"], Int64[Tensor, " b"]]:
        """The relevant items of some queries, the first of a query repeated behind them; and how many."""
        group = self.group[rows]
        count = self.count[group]
        place = torch.arange(int(count.max()))
        place = torch.where(place < count[:, None], place, 0)
        return self.items[self.first[group][:, None] + place], count


def scores(queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Inner products in double precision, rounded to single.

    Equal rows get equal scores wherever they stand: the rounding removes the last bits in which a matrix
    product differs from one column to another, and ties stay ties.
    """
    queries = queries.double()
    found = queries.new_empty(len(queries), len(gallery), dtype=torch.float32)
    for start in range(0, len(gallery), TILE_ITEMS):
        tile = slice(start, start + TILE_ITEMS)
        found[:, tile] = queries @ gallery[tile].double().T
    return found


def rank_relevant(
    queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"], relevant: Relevant
) -> Ranking:
    """Rank the best relevant item of each query.

    Ties are pessimistic: an irrelevant item with an equal score stands before the relevant one, so a model
    that gives everything the same score is never rewarded.

    Raises:
        ValueError: a query without a relevant item, which has no rank.
    """
    orphans = relevant.counts == 0
    if bool(orphans.any()):
        raise ValueError(f"{int(orphans.sum())} queries have no relevant item in the gallery")
    parts = [
        _rank_block(scores(queries[rows], gallery), *relevant.listed(rows))
        for rows in _blocks(len(queries), len(gallery))
    ]
    rank, best, rival = (torch.cat(part) for part in zip(*parts, strict=True))
    return Ranking(rank=rank, best=best, rival=rival)


def _rank_block(block: Tensor, item: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best_score, place = block.gather(1, item).max(dim=1)
    best = item.gather(1, place[:, None]).squeeze(1)
    block.scatter_(1, item, -torch.inf)
    rival = block.argmax(dim=1)
    # Not `block >= best`: that is false for nan, and a model gone to nan would come first everywhere.
    not_below = block.shape[1] - (block < best_score[:, None]).sum(dim=1)
    own = torch.where(best_score > -torch.inf, 0, count)  # relevant items that are not below the best of them
    return 1 + not_below - own, best, torch.where(count == block.shape[1], -1, rival)


def top_matches(
    queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"], *, k: int
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Scores and positions of the k best items of each query, or of all where the gallery has fewer."""
    found = [
        scores(queries[rows], gallery).topk(min(k, len(gallery)), dim=1)
        for rows in _blocks(len(queries), len(gallery))
    ]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


def chance_of_hit(num_relevant: Int64[Tensor, " n"], *, num_items: int, k: int) -> float:
    """Probability, averaged over queries, that the first k of a shuffled gallery hold a relevant item."""
    drawn = torch.arange(min(k, num_items), dtype=torch.float64)
    wrong = num_items - num_relevant.double()[:, None] - drawn
    miss = (wrong.clamp(min=0) / (num_items - drawn)).prod(dim=1)
    return float((1 - miss).mean())


def expected_precision(relevant: Int64[Tensor, " n"], depth: Int64[Tensor, " n"], *, num_items: int) -> float:
    """Average precision among the first `depth` of a shuffled gallery, averaged over queries.

    Place i holds a relevant item with probability r/n, and the i-1 before it then hold (i-1)(r-1)/(n-1).
    """
    harmonic = (1 / torch.arange(1, num_items + 1, dtype=torch.float64)).cumsum(0)[depth - 1]
    others = (relevant.double() - 1) / max(1, num_items - 1)
    return ((harmonic + others * (depth - harmonic)) / num_items).mean().item()


def group_sizes(query_group: Int64[Tensor, " n"], gallery_group: Int64[Tensor, " m"]) -> Int64[Tensor, " n"]:
    """How many items of the gallery are relevant to each query."""
    highest = int(torch.cat([query_group, gallery_group]).max())
    return gallery_group.bincount(minlength=highest + 1)[query_group]


def _blocks(num_queries: int, num_items: int) -> Iterator[slice]:
    step = min(BLOCK_QUERIES, max(1, BLOCK_ENTRIES // max(1, num_items)))
    return (slice(start, start + step) for start in range(0, num_queries, step))
