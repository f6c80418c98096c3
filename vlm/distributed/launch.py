"""Process groups for commands that Lightning does not run."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from vlm.distributed.topology import Topology


@contextmanager
def process_group() -> Iterator[Topology]:
    """Join the ranks that torchrun or srun started; alone where neither did."""
    os.environ.update(srun_ranks(os.environ))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Topology.current()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # By the device of a tensor: what runs on the CPU of a machine with GPUs needs gloo.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield Topology.current()
    # Not after an error: it might wait for what never comes, and who tells of the error asks for the rank.
    dist.destroy_process_group()


def srun_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of torchrun, for a process that srun started as one of several; else nothing.

    SLURM_STEP_NUM_TASKS tells so: SLURM_PROCID and SLURM_NTASKS are also set in the shell of a batch script,
    where a command stands alone. What is set already is kept, such as MASTER_PORT, or all by a torchrun that
    srun started.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or "WORLD_SIZE" in environment:
        return {}
    ranks = {
        "WORLD_SIZE": tasks,
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        # Jobs that share a node must not meet; above the ports that Lightning takes, by the same rule.
        "MASTER_PORT": str(25_000 + int(environment["SLURM_JOB_ID"]) % 7_000),
    }
    return {name: value for name, value in ranks.items() if name not in environment}


def first_host(node_list: str) -> str:
    """Where rank 0 runs: `gpu003` of `gpu[003,005-007],login1`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", node_list).split(",")[0]


def is_main_process() -> bool:
    """Whether this process will be rank 0, told before process groups exist by what launchers set."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
    return all(rank == "0" for rank in ranks)
