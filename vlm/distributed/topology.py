"""Where this process stands among its peers."""

import os
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Rank, number of ranks, and rank on this node; (0, 1, 0) in a process that stands alone."""

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def current(cls) -> "Topology":
        """Read the default process group, if there is one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(rank=0, world_size=1, local_rank=0)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return cls(rank=dist.get_rank(), world_size=dist.get_world_size(), local_rank=local_rank)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the user."""
        return self.rank == 0
