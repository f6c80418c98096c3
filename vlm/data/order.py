"""Which sample stands where: a pure function of the seed and the step.

An epoch of N samples has M = ⌊N / B⌋ batches. Its shards are permuted and laid on a line, the line is
rotated by a random start, and its first M · B samples are cut into G groups of P streams. Batch b takes
B / P samples from each stream of group b mod G, from the place that batch b − G left. Neither ranks nor
loader workers enter: a rank takes a slice of the streams of every group, a worker every n-th batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from numpy.random import PCG64, SeedSequence

# Leading words of the entropy, so that draws for different purposes never share a seed.
_SHARDS, _START, _WINDOW, _ELSEWHERE = range(4)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive samples of one shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one source's samples.

    Args:
        shard_sizes: samples of each shard, N in sum.
        batch_size: B, this source's samples in every global batch.
        num_groups: G.
        streams_per_group: P, divides B.
        window: samples of a stream that are permuted among themselves.
        seed: non-negative integers.
    """

    shard_sizes: tuple[int, ...]
    batch_size: int
    num_groups: int
    streams_per_group: int
    window: int
    seed: tuple[int, ...]

    @cached_property
    def num_samples(self) -> int:
        """N."""
        return sum(self.shard_sizes)

    @property
    def batches_per_epoch(self) -> int:
        """M."""
        return self.num_samples // self.batch_size

    @property
    def stream_batch(self) -> int:
        """Samples that one stream gives to a batch, B / P."""
        return self.batch_size // self.streams_per_group

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of a global step, and its batch within the epoch."""
        return divmod(step, self.batches_per_epoch)

    def stream_length(self, group: int) -> int:
        """Samples in each stream of a group: B / P for every batch b ≡ group (mod G)."""
        return self._group_batches(group) * self.stream_batch

    def runs(self, *, epoch: int, group: int, stream: int) -> list[Run]:
        """Where the samples of a stream are stored, in reading order."""
        shards = _permutation(len(self.shard_sizes), _SHARDS, *self.seed, epoch)
        rotation = int(_draws(1, _START, *self.seed, epoch)[0] % np.uint64(self.num_samples))
        batches_before = sum(self._group_batches(g) for g in range(group))
        length = self.stream_length(group)
        first = rotation + batches_before * self.batch_size + stream * length
        return _cut(np.asarray(self.shard_sizes)[shards], shards, first % self.num_samples, length)

    def window_bounds(self, *, group: int, position: int) -> tuple[int, int]:
        """First position of the window around a position of a stream, and the end of the window."""
        start = position - position % self.window
        return start, min(start + self.window, self.stream_length(group))

    def window_permutation(
        self, *, epoch: int, group: int, stream: int, position: int
    ) -> Int64[ndarray, "w"]:
        """Offsets, within the window around `position`, of the samples in the order they are served."""
        start, stop = self.window_bounds(group=group, position=position)
        return _permutation(stop - start, _WINDOW, *self.seed, epoch, group, stream, start)

    def elsewhere(
        self, *, epoch: int, group: int, stream: int, position: int, count: int
    ) -> Int64[ndarray, "n"]:
        """Rows drawn from the whole source, for a position whose window has no whole sample."""
        draws = _draws(count, _ELSEWHERE, *self.seed, epoch, group, stream, position)
        return (draws % np.uint64(self.num_samples)).astype(np.int64)

    def _group_batches(self, group: int) -> int:
        return max(0, -((group - self.batches_per_epoch) // self.num_groups))


def _draws(count: int, *entropy: int) -> ndarray:
    # Raw words of a bit generator and a stable sort stay the same in every numpy release; the
    # methods of Generator may change, and a resumed run would then see another order.
    words: ndarray = PCG64(SeedSequence(entropy)).random_raw(count)
    return words


def _permutation(count: int, *entropy: int) -> Int64[ndarray, "n"]:
    return np.argsort(_draws(count, *entropy), kind="stable")


def _cut(sizes: ndarray, shards: Sequence[int] | ndarray, first: int, length: int) -> list[Run]:
    """Runs of `length` samples from place `first` of a closed line of shards."""
    ends = np.cumsum(sizes)
    place = int(np.searchsorted(ends, first, side="right"))
    start = first - int(ends[place] - sizes[place])
    runs = []
    while length > 0:
        stop = min(int(sizes[place]), start + length)
        if stop > start:
            runs.append(Run(shard=int(shards[place]), start=start, stop=stop))
        length -= stop - start
        place, start = (place + 1) % len(sizes), 0
    return runs
