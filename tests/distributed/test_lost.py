"""Errors around collectives."""

import pytest
import torch

from vlm.distributed import naming_lost_ranks
from vlm.errors import LostRankError


def test_a_lost_peer_is_named_and_memory_that_is_full_is_no_lost_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlm.distributed.lost.alone", lambda: False)
    message = r"another rank ended, .*\(closed by peer\); go on"
    with pytest.raises(LostRankError, match=message), naming_lost_ranks("go on"):
        raise RuntimeError("closed by peer")
    with pytest.raises(torch.OutOfMemoryError), naming_lost_ranks("go on"):
        raise torch.OutOfMemoryError("full")
