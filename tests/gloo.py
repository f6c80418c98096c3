"""Run a function in several processes and give back what each returned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _entry(
    rank: int, world_size: int, backend: str, folder: str, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        torch.save(fn(*args), f"{folder}/result_{rank}.pt")
        # A rank that leaves early closes connections that slower ranks may still be making.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_gloo(fn: Callable[..., Any], world_size: int, tmp_path: Path, *args: Any) -> list[Any]:
    """Call `fn(*args)` on every rank; the results in rank order.

    `fn` must be importable (a function at module level) and its result one that `torch.save` can write.
    """
    return _run("gloo", fn, world_size, tmp_path, args)


def run_nccl(fn: Callable[..., Any], world_size: int, tmp_path: Path, *args: Any) -> list[Any]:
    """`run_gloo` on a GPU for each rank."""
    return _run("nccl", fn, world_size, tmp_path, args)


def _run(
    backend: str, fn: Callable[..., Any], world_size: int, tmp_path: Path, args: tuple[Any, ...]
) -> list[Any]:
    folder = tmp_path / f"{backend}_{world_size}_{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    mp.start_processes(
        _entry, (world_size, backend, str(folder), fn, args), nprocs=world_size, start_method="spawn"
    )  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"result_{rank}.pt", weights_only=False) for rank in range(world_size)]
