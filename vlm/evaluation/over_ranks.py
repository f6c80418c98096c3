"""Work on embeddings that the ranks share."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

from vlm.distributed import gather_objects
from vlm.inference import Embedder

T = TypeVar("T")
R = TypeVar("R")


def over_ranks(work: Callable[[T], R], items: Sequence[T], embedder: Embedder, *, what: str) -> list[R]:
    """`work` of every item, in the order of the items, on every rank; item j is done by rank j mod W.

    Args:
        work: has a picklable result.
        embedder: knows the ranks and whether to show a bar, and is told of each round.
        what: the name of the bar.
    """
    topology = embedder.topology
    rounds = range(math.ceil(len(items) / topology.world_size))
    shown = embedder.progress and topology.is_main and len(rounds) > 1 and sys.stderr.isatty()
    own: dict[int, R] = {}
    for number in tqdm(rounds, desc=what, leave=False, disable=not shown):
        item = number * topology.world_size + topology.rank
        if item < len(items):
            own[item] = work(items[item])
        if embedder.between_batches is not None:
            embedder.between_batches()
    found = {item: result for part in gather_objects(own) for item, result in part.items()}
    return [found[item] for item in range(len(items))]
