"""Where this process stands among its peers."""

from dataclasses import dataclass

import torch.distributed as dist


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
