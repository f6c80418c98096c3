"""Small things that all ranks must agree on, apart from the traffic of the model."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlm.distributed.topology import alone
from vlm.errors import VlmError

T = TypeVar("T")

# One rank may index thousands of shards while the others wait.
_PATIENCE = timedelta(days=2)


class ControlGroup:
    """All ranks, joined on the CPU: waiting here neither blocks a device nor runs into its time limits.

    Every rank makes one, and makes the same calls on it in the same order.
    """

    def __init__(self) -> None:
        self._group: Any = None if alone() else dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._pending: tuple[Tensor, Any] | None = None

    def first_rank_does(self, work: Callable[[], T]) -> T:
        """What `work` returned on the first rank, on every rank; so is its `VlmError`, raised."""
        if self._group is None:
            return work()
        outcome: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                outcome = [work()]
            except (VlmError, OSError) as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if isinstance(outcome[0], Exception):
            outcome[0].of_all_ranks = True  # type: ignore[attr-defined]
            raise outcome[0]
        result: T = outcome[0]
        return result

    def each_rank_does(self, work: Callable[[], None]) -> None:
        """Call `work` on every rank; the `VlmError` of one is raised on all, once all are done."""
        error: Exception | None = None
        try:
            work()
        except (VlmError, OSError) as found:
            error = found
        for error_of_one in self.gather(error):
            if error_of_one is not None:
                error_of_one.of_all_ranks = True  # type: ignore[attr-defined]
                raise error_of_one

    def gather(self, own: T) -> list[T]:
        """Every rank's picklable value, in rank order, on every rank; waits for days if it has to."""
        if self._group is None:
            return [own]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own, group=self._group)
        return everyone

    def agree(self, own: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks, as of the call before this one (zeros at first).

        The exchange of one call runs until the next, so that nobody waits for it; alone there is none.
        """
        if self._group is None:
            return list(own)
        numbers = torch.tensor(own, dtype=torch.int64)
        agreed = torch.zeros_like(numbers)
        if self._pending is not None:
            agreed, work = self._pending
            work.wait()
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = numbers, work
        return [int(number) for number in agreed]
