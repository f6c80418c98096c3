"""What is said when another rank is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlm.distributed.topology import alone
from vlm.errors import LostRankError


@contextmanager
def naming_lost_ranks(then: str) -> Iterator[None]:
    """Around collectives: say in one message that a peer is gone, and what to do.

    Args:
        then: what is kept, and how to go on.

    Raises:
        LostRankError: in the place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no narrower class that all backends raise
        if alone():
            raise
        reason = str(error).partition("\n")[0]
        raise LostRankError(f"another rank ended, or cannot be reached ({reason}); {then}") from error
