"""Where the best relevant item of a gallery stands for each query: what every accuracy and recall counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BLOCK_ENTRIES = 1 << 23
"""Scores held at once: 64 MiB in double precision, whatever the sizes of queries and gallery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """For each of n queries, positions in the gallery and the place of its best relevant item."""

    rank: Int64[Tensor, " n"]
    """1 + the number of irrelevant items that score at least as high as the best relevant one."""
    best: Int64[Tensor, " n"]
    """The best relevant item."""
    rival: Int64[Tensor, " n"]
    """The best irrelevant item; -1 where every item is relevant."""


def scores(queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Inner products in double precision, rounded to single.

    Equal rows get equal scores wherever they stand: the rounding removes the last bits in which a matrix
    product differs from one column to another, and ties stay ties.
    """
    return (queries.double() @ gallery.double().T).float()


def rank_relevant(
    queries: Float[Tensor, "n d"],
    gallery: Float[Tensor, "m d"],
    *,
    query_group: Int64[Tensor, " n"],
    gallery_group: Int64[Tensor, " m"],
) -> Ranking:
    """Rank the best relevant item of each query; an item is relevant when it is of the query's group.

    Ties are pessimistic: an irrelevant item with an equal score stands before the relevant one, so a model
    that gives everything the same score is never rewarded.

    Raises:
        ValueError: a query without a relevant item, which has no rank.
    """
    orphans = torch.isin(query_group, gallery_group, invert=True)
    if bool(orphans.any()):
        raise ValueError(f"{int(orphans.sum())} queries have no relevant item in the gallery")
    parts = [
        _rank_block(queries[rows], gallery, query_group[rows, None] == gallery_group)
        for rows in _blocks(len(queries), len(gallery))
    ]
    rank, best, rival = (torch.cat(part) for part in zip(*parts, strict=True))
    return Ranking(rank=rank, best=best, rival=rival)


def _rank_block(queries: Tensor, gallery: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    block = scores(queries, gallery)
    best_score, best = block.masked_fill(~relevant, -torch.inf).max(dim=1)
    rival_score, rival = block.masked_fill(relevant, -torch.inf).max(dim=1)
    # Not `block >= best`: that is false for nan, and a model gone to nan would come first everywhere.
    rank = 1 + (~(block < best_score[:, None]) & ~relevant).sum(dim=1)
    return rank, best, torch.where(rival_score.isinf(), -1, rival)


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


def group_sizes(query_group: Int64[Tensor, " n"], gallery_group: Int64[Tensor, " m"]) -> Int64[Tensor, " n"]:
    """How many items of the gallery are relevant to each query."""
    highest = int(torch.cat([query_group, gallery_group]).max())
    return gallery_group.bincount(minlength=highest + 1)[query_group]


def _blocks(num_queries: int, num_items: int) -> Iterator[slice]:
    step = max(1, BLOCK_ENTRIES // max(1, num_items))
    return (slice(start, start + step) for start in range(0, num_queries, step))
