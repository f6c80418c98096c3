"""How fast ranks receive the rows of others: `torchrun --nproc-per-node 2 transfer_worker.py auto`."""

import json
import os
import sys
import time

import torch
import torch.distributed as dist

BYTES = 64 * 2**20
"""Of each rank: long enough that the start of a call does not count."""
CALLS = 5


def main() -> None:
    """Print GB/s (10^9) that a rank receives in an all-gather: the best call, without the first."""
    rank = int(os.environ["LOCAL_RANK"])
    gpu = sys.argv[1] != "cpu" and torch.cuda.is_available()
    if gpu and torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        sys.exit(f"there are {torch.cuda.device_count()} GPUs, and each process needs one")
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    own = torch.randn(BYTES // 4, device=device)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    seconds = [_gather(parts, own, device) for _ in range(1 + CALLS)]
    if rank == 0:
        received = (len(parts) - 1) * BYTES
        print(json.dumps({"gb_per_s": received / min(seconds[1:]) / 1e9}))
    dist.destroy_process_group()


def _gather(parts: list[torch.Tensor], own: torch.Tensor, device: torch.device) -> float:
    dist.barrier()
    start = time.perf_counter()
    dist.all_gather(parts, own)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
