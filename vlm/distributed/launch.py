"""Process groups for commands that Lightning does not run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from vlm.distributed.topology import Topology


@contextmanager
def process_group() -> Iterator[Topology]:
    """Join the ranks that a launcher started with RANK, WORLD_SIZE and MASTER_ADDR; alone without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Topology.current()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Topology.current()
    finally:
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process will be rank 0, told before process groups exist by what launchers set."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
    return all(rank == "0" for rank in ranks)
