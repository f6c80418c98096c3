"""Where this process stands among its peers."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


def alone() -> bool:
    """Whether this process has no peers."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Rank and number of ranks; 0 of 1 in a process that stands alone."""

    rank: int
    world_size: int

    @classmethod
    def current(cls) -> "Topology":
        """Read the default process group, if there is one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(rank=0, world_size=1)
        return cls(rank=dist.get_rank(), world_size=dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the user."""
        return self.rank == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that exchange rows with each other, and this process's place among them."""

    rank: int
    size: int
    handle: Any
    """Of torch.distributed; None for all ranks."""

    @classmethod
    def everyone(cls) -> "Group":
        """All ranks, or this process alone."""
        topology = Topology.current()
        return cls(rank=topology.rank, size=topology.world_size, handle=None)
