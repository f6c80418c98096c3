"""Loader workers: items in the order of their numbers, and errors as they were raised."""

import os
import signal
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlm.errors import VlmError

T = TypeVar("T")


class Numbered(IterableDataset[T | VlmError], Generic[T]):
    """Items start … stop − 1; worker w of n makes every n-th from start + w, in which order a loader asks.

    A subclass makes the items in `items`. An error that carries a message for the user travels as an item.
    """

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start = start
        self.stop = stop

    def items(self, numbers: range) -> Iterator[T]:
        """Make the items with these numbers."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[T | VlmError]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            yield from self.items(range(self.start + worker, self.stop, num_workers))
        except VlmError as error:
            yield error


class NumberedLoader(DataLoader[Any], Generic[T]):
    """A DataLoader over `Numbered` items that raises a worker's error itself.

    DataLoader would put the worker's stack trace into the message.
    """

    def __init__(self, items: Numbered[T], *, num_workers: int) -> None:
        super().__init__(
            items,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
        )
        self._num_items = max(0, items.stop - items.start)

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        for item in super().__iter__():
            if isinstance(item, VlmError):
                raise item
            yield item


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    # tokenizers warns in each forked worker unless told; one worker is one thread anyway
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C and a scheduler's signals reach the whole process group. The training process saves and ends the
    # run; without workers it could not finish its step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
