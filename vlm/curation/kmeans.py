"""Spherical k-means over a folder of features: every rank reads its blocks, sums and counts are added up.

The result does not depend on the number of ranks, not by a bit: what a block holds does not, and fp16 values
between -1 and 1 are multiples of 2^-24, so that their sums in float64 are exact in any order (up to 2^29
samples in a cluster).

Lloyd's iterations alone end where two clusters are held by one centroid while two centroids share a cluster.
Now and then centroids that hardly matter are therefore moved to clusters that hold too much.
"""

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from numpy import ndarray
from torch import Tensor

from vlm.curation.seeding import first_centroids
from vlm.distributed import Topology, sum_over_ranks
from vlm.errors import ConfigError
from vlm.inference.features import FeatureSet

BLOCK = 8192  # rows; with a tile of centroids 128 MiB of similarities
_TILE = 4096
_PERTURBATION = 1 / 1024
_RELOCATE_EVERY = 4  # iterations: halves need some to come apart, and would seem useless before
_SAFETY = 1.5  # what a relocation has to gain at least, over what it costs; both are estimates
_EXACT = 1 << 24  # cosines rounded to this grid have sums that do not depend on their order


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the clusters, beside the features.

    Args:
        k: number of clusters.
        iterations: how often the centroids are moved; fewer where they stand still.
        seed: of the first centroids and of repairs.

    Raises:
        ConfigError: a number is out of range.
    """

    k: int
    iterations: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("k", "iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What one pass over the features found."""

    objective: float
    """Mean cosine of the samples with their centroids."""
    imbalance: float
    """k · Σ n² / N² over the clusters' sizes n: 1 where all are equal, k where one has everything."""
    empty: int
    """Clusters without a sample."""
    left_empty: int
    """Those that could not be repaired, as no cluster had two samples to share; in the last pass, all."""
    relocated: int
    """Clusters given up, as their samples have others nearly as near, for halves of such as hold too much."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where k-means stands; what a checkpoint holds."""

    centroids: Float[Tensor, "k d"]
    """Unit length, fp32."""
    history: tuple[Iteration, ...]
    finished: bool

    def history_text(self) -> str:
        """The history as json."""
        return json.dumps([asdict(iteration) for iteration in self.history])


class Block(NamedTuple):
    """Consecutive rows of a shard."""

    shard: int
    start: int
    features: Float16[Tensor, "n d"]
    whole: Tensor
    """bool [n]: not broken."""


class Passes:
    """Passes of this rank over its share of the blocks.

    Args:
        after_block: called with the number of its rows.
    """

    def __init__(
        self,
        features: FeatureSet,
        topology: Topology,
        *,
        device: str,
        after_block: Callable[[int], object],
    ) -> None:
        self.features = features
        self.topology = topology
        self.device = torch.device(device)
        self._after_block = after_block
        places = [
            (number, start)
            for number, shard in enumerate(features.manifest.shards)
            for start in range(0, shard.rows, BLOCK)
        ]
        self._own = places[topology.rank :: topology.world_size]

    def run(self, centroids: Float[Tensor, "k d"], *, margins: bool) -> "Sums":
        """Look at every sample of all ranks once.

        Args:
            margins: find `Sums.margins` too, which takes longer.
        """
        centroids = centroids.to(self.device)
        k = len(centroids)
        sums = torch.zeros(centroids.shape, dtype=torch.float64, device=self.device)
        counts = torch.zeros(k, dtype=torch.int64, device=self.device)
        lost = torch.zeros(k, dtype=torch.int64, device=self.device)
        for block in blocks(self.features, self._own):
            rows = block.features[block.whole].to(self.device).float()
            if margins:
                cosines, found = nearest(rows, centroids, count=2)
                labels = found[:, 0]
                between = (cosines[:, 0] - cosines[:, 1]).double() * _EXACT
                lost.index_add_(0, labels, between.round().long())
            else:
                labels = nearest(rows, centroids, count=1)[1][:, 0]
            sums.index_add_(0, labels, rows.double())
            counts += torch.bincount(labels, minlength=k)
            self._after_block(len(block.features))
        return Sums(
            sum_over_ranks(sums).cpu(),
            sum_over_ranks(counts).cpu(),
            sum_over_ranks(lost).cpu().double() / _EXACT if margins else None,
        )


class Sums(NamedTuple):
    """What one pass adds up for each cluster, over all ranks."""

    vectors: Float[Tensor, "k d"]
    """Sum of the samples that are nearest to its centroid, float64."""
    counts: Int64[Tensor, "k"]
    margins: Float[Tensor, "k"] | None
    """Sum of cosine with it less cosine with the second nearest: what would be lost without it."""


def blocks(features: FeatureSet, places: Sequence[tuple[int, int]]) -> Iterator[Block]:
    """The rows from these places on (shard and row), at most BLOCK of each."""
    for shard, start in places:
        rows = features.rows(shard, start, min(start + BLOCK, features.manifest.shards[shard].rows))
        broken = features.broken(shard) - start
        whole = torch.ones(len(rows), dtype=torch.bool)
        whole[broken[(broken >= 0) & (broken < len(rows))]] = False
        yield Block(shard, start, rows, whole)


def nearest(
    rows: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], *, count: int
) -> tuple[Float[Tensor, "n count"], Int64[Tensor, "n count"]]:
    """The `count` largest cosines of each row and their centroids, the nearest first."""
    values, labels = _largest(rows @ centroids[:_TILE].T, count)
    for start in range(_TILE, len(centroids), _TILE):
        value, label = _largest(rows @ centroids[start : start + _TILE].T, count)
        values, order = _largest(torch.cat([values, value], 1), count)
        labels = torch.cat([labels, label + start], 1).gather(1, order)
    return values, labels


def _largest(cosines: Float[Tensor, "n m"], count: int) -> tuple[Float[Tensor, "n c"], Int64[Tensor, "n c"]]:
    if count == 1:  # several times faster than topk
        values, labels = cosines.max(dim=1, keepdim=True)
        return values, labels
    values, labels = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return values, labels


def lloyd(
    passes: Passes,
    settings: Settings,
    *,
    begun: State | None,
    keep: Callable[[State], None],
) -> State:
    """Move the centroids until they stand still, or `settings.iterations` times.

    Args:
        begun: what an earlier start kept last; None begins anew.
        keep: called with the state after each move.
    """
    state = begun
    if state is None:
        first = first_centroids(
            passes.features, passes.topology, k=settings.k, seed=settings.seed, device=passes.device
        )
        state = State(centroids=first, history=(), finished=False)
        keep(state)
    while not state.finished:
        relocates = _relocates(len(state.history), settings)
        state = _moved(state, passes.run(state.centroids, margins=relocates), settings, passes.device)
        keep(state)
    return state


def _relocates(number: int, settings: Settings) -> bool:
    """Whether centroids are relocated after this pass: not after the last ones, in which they settle."""
    every = number % _RELOCATE_EVERY == _RELOCATE_EVERY - 1
    return every and number < settings.iterations - _RELOCATE_EVERY + 1 and settings.k > 2


def _moved(state: State, found: Sums, settings: Settings, device: torch.device) -> State:
    number = len(state.history)
    counts = found.counts
    centroids = _unit(found.vectors, state.centroids, counts)
    moves, left_empty = _repairs(counts)
    empty = int((counts == 0).sum())
    if found.margins is not None:
        moves += _relocations(found, state.centroids.to(device))
    rng = np.random.default_rng((settings.seed, number))
    moved = _split(centroids, moves, rng)
    later = any(_relocates(other, settings) for other in range(number + 1, settings.iterations))
    stands = torch.equal(moved, state.centroids) and (found.margins is not None or not later)
    finished = stands or number == settings.iterations
    iteration = Iteration(
        # of the sums: they are exact, a sum of cosines would depend on the order
        objective=float((found.vectors * state.centroids).sum() / counts.sum()),
        imbalance=imbalance_of(counts.numpy()),
        empty=empty,
        left_empty=empty if finished else left_empty,
        relocated=0 if finished else len(moves) - (empty - left_empty),
    )
    return State(
        centroids=state.centroids if finished else moved,
        history=(*state.history, iteration),
        finished=finished,
    )


def _unit(
    sums: Float[Tensor, "k d"], old: Float[Tensor, "k d"], counts: Int64[Tensor, "k"]
) -> Float[Tensor, "k d"]:
    """The directions of the sums; the old centroid where there is no sample, or the sum has no direction."""
    length = sums.norm(dim=1, keepdim=True)
    kept = (counts == 0)[:, None] | (length == 0)
    return torch.where(kept, old, (sums / length).float())


def _repairs(counts: Int64[Tensor, "k"]) -> tuple[list[tuple[int, int]], int]:
    """For each empty cluster the largest, which is to be split.

    Returns:
        Pairs of an empty and a large cluster, and the number of those left, as none has two samples to share.
    """
    empty = torch.nonzero(counts == 0).flatten().tolist()
    largest = [(-size, cluster) for cluster, size in enumerate(counts.tolist())] if empty else []
    heapq.heapify(largest)
    pairs: list[tuple[int, int]] = []
    for cluster in empty:
        size, large = heapq.heappop(largest)
        if size > -2:
            break
        pairs.append((cluster, large))
        heapq.heappush(largest, (-(-size // 2), cluster))
        heapq.heappush(largest, (size + -size // 2, large))
    return pairs, len(empty) - len(pairs)


def _relocations(found: Sums, centroids: Float[Tensor, "k d"]) -> list[tuple[int, int]]:
    """Clusters that hardly matter, each with one that is to be split in its favour.

    A cluster that holds two has a short mean. Once split, its samples should be as near to their centroids as
    those of the median cluster are; that is what a split gains. Of two clusters next to each other one is
    given up, not both, since each seems useless because of the other.
    """
    assert found.margins is not None
    counts = found.counts.double()
    coherence = found.vectors.norm(dim=1) / counts.clamp(min=1)
    filled = counts > 0
    gain = torch.where(filled, counts * (coherence[filled].median() - coherence), -torch.inf)
    cost = torch.where(filled, found.margins, torch.inf)
    given, split = cost.argsort(stable=True), gain.argsort(descending=True, stable=True)
    worth = gain[split] > _SAFETY * cost[given]
    given, split = given[worth], split[worth]
    at = given.to(centroids.device)
    blocks = torch.split(at, BLOCK)
    beside = torch.cat([nearest(centroids[block], centroids, count=2)[1][:, 1] for block in blocks])
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for cluster, large, neighbour in zip(given.tolist(), split.tolist(), beside.tolist(), strict=True):
        if len({cluster, large, neighbour} - used) == 3:
            pairs.append((cluster, large))
            used |= {cluster, large, neighbour}
    return pairs


def _split(
    centroids: Float[Tensor, "k d"], pairs: Sequence[tuple[int, int]], rng: np.random.Generator
) -> Float[Tensor, "k d"]:
    """Put the first of each pair beside the second, both a little to either side of where that was."""
    centroids = centroids.clone()
    for cluster, large in pairs:
        aside = torch.from_numpy(rng.standard_normal(centroids.shape[1]))
        aside *= _PERTURBATION / aside.norm()
        whole = centroids[large].double()
        centroids[cluster] = torch.nn.functional.normalize(whole + aside, dim=0).float()
        centroids[large] = torch.nn.functional.normalize(whole - aside, dim=0).float()
    return centroids


def imbalance_of(sizes: Int64[ndarray, "k"]) -> float:
    """k · Σ n² / N² over the sizes n of clusters that hold N samples together."""
    shares = sizes / sizes.sum()
    return float(len(sizes) * (shares**2).sum())


def as_history(text: str) -> tuple[Iteration, ...]:
    """What `State.history_text` wrote."""
    content: list[dict[str, Any]] = json.loads(text)
    return tuple(Iteration(**values) for values in content)
