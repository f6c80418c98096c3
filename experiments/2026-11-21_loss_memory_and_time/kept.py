"""What autograd keeps of each way to compute the loss, over ranks and over sizes of groups: kept.csv."""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from vlm.distributed import split_ranks
from vlm.losses import IMPLEMENTATIONS, info_nce, sigmoid_loss

HERE = Path(__file__).parent
PAIRS, DIM, GROUP = 16, 64, 4
RANKS = (32, 64, 128, 256)


def kept_bytes(kind: str, implementation: str, ranks: int, group_size: int | None) -> int:
    """On rank 0 of so many, which gathers its own rows again and again; a storage is counted once."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    image, text = (F.normalize(torch.randn(PAIRS, DIM), dim=1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (14.0, -10.0))
    how: dict[str, Any] = {
        "logit_scale": scale,
        "implementation": implementation,
        "group": split_ranks(group_size, key="group"),
    }
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if kind == "softmax":
            loss = info_nce(image, text, **how)
        else:
            loss = sigmoid_loss(image, text, logit_bias=bias, **how)
    assert loss.requires_grad
    return sum(kept.values())


def main() -> None:
    """Write kept.csv, print a row for each loss with the fitted exponent over all pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    rows = []
    for kind in ("softmax", "sigmoid"):
        for implementation in IMPLEMENTATIONS:
            series = {
                "": [(ranks, None) for ranks in RANKS],
                f", groups of {GROUP}": [(ranks, GROUP) for ranks in RANKS],
                f", {RANKS[-1]} ranks in groups of so many": [(RANKS[-1], size) for size in RANKS],
            }
            for how, sizes in series.items():
                kept = [kept_bytes(kind, implementation, *size) for size in sizes]
                exponent = np.polyfit(np.log(RANKS), np.log(kept), 1)[0]
                name = f"{kind} {implementation}{how}"
                rows.append(
                    {"loss": name, **dict(zip(RANKS, kept, strict=True)), "exponent": f"{exponent:.3f}"}
                )
                cells = [f"{value / 2**20:.3f}" for value in kept]
                print(f"| {name} | {' | '.join(cells)} | {exponent:.2f} |")
    with (args.out / "kept.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
