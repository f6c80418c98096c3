"""The samples of one stream of one epoch, permuted within windows while they are read."""

from collections.abc import Iterator, Sequence

from numpy import ndarray

from vlm.broken import BrokenSample
from vlm.data.order import Order, Run
from vlm.data.shards import ShardCursor
from vlm.data.tar import RawSample

# A cut shard leaves windows without a whole sample. Then others are tried, as many as this, in random places.
_TRIES_ELSEWHERE = 64


class WindowedStream:
    """Serves consecutive positions of a stream, reading one window ahead of them.

    It holds the window that is served, whole, since any of its samples may have to stand in for a broken one,
    and as much of the next as has been served of this one: at most two windows, and no burst of reading where
    a window ends.

    Args:
        cursor: of this stream alone.
        spare: for single samples from elsewhere.
        position: the first position that will be asked for.
    """

    def __init__(
        self,
        order: Order,
        cursor: ShardCursor,
        spare: ShardCursor,
        *,
        epoch: int,
        group: int,
        stream: int,
        position: int,
    ) -> None:
        self._order = order
        self._cursor = cursor
        self._spare = spare
        self._place = (epoch, group, stream)
        self._length = order.stream_length(group)
        self._held: dict[int, RawSample | BrokenSample] = {}
        self._next_read, _ = order.window_bounds(group=group, position=position)
        runs = order.runs(epoch=epoch, group=group, stream=stream)
        self._places = _stored(runs, self._next_read)
        self._permutation: tuple[int, ndarray] | None = None

    def advance(self, position: int, count: int) -> None:
        """Drop windows before `position`, and read what positions up to `position + count` can need."""
        start, _ = self._order.window_bounds(group=self._place[1], position=position)
        while (oldest := next(iter(self._held), start)) < start:
            del self._held[oldest]
        while self._next_read < min(position + count + self._order.window, self._length):
            self._held[self._next_read] = self._cursor.try_read(*next(self._places))
            self._next_read += 1

    def candidates(self, position: int) -> Iterator[RawSample | BrokenSample]:
        """The sample of a position, the others of its window that may stand in for it, then any others."""
        epoch, group, stream = self._place
        start, stop = self._order.window_bounds(group=group, position=position)
        if self._permutation is None or self._permutation[0] != start:
            offsets = self._order.window_permutation(
                epoch=epoch, group=group, stream=stream, position=position
            )
            self._permutation = (start, offsets)
        size = stop - start
        for turn in range(size):
            yield self._held[start + int(self._permutation[1][(position - start + turn) % size])]
        rows = self._order.elsewhere(
            epoch=epoch, group=group, stream=stream, position=position, count=_TRIES_ELSEWHERE
        )
        for row in rows.tolist():
            yield self._spare.try_read_row(row)

    def close(self) -> None:
        """Close the open shard."""
        self._cursor.close()


def _stored(runs: Sequence[Run], position: int) -> Iterator[tuple[int, int]]:
    """Shard and row of each sample of the runs, from a position on."""
    # No method of the stream: a generator that holds the stream by which it is held would keep the windows of
    # epochs that are over until Python's collector looks at old objects, which it does rarely.
    for run in runs:
        size = run.stop - run.start
        for row in range(run.start + min(position, size), run.stop):
            yield run.shard, row
        position = max(0, position - size)
