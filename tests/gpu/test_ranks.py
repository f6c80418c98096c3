"""Losses over ranks that NCCL joins, each on a GPU of its own."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo import run_nccl
from gpus import needs_gpus
from torch import Tensor

from vlm.distributed import Topology, split_ranks
from vlm.losses import IMPLEMENTATIONS, info_nce, sigmoid_loss

pytestmark = needs_gpus(2)
PAIRS, DIM = 12, 8
CASES = list(itertools.product(("softmax", "sigmoid"), IMPLEMENTATIONS))


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(PAIRS, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    image, text = (F.normalize(x, dim=1) for x in drawn)
    return image, text


def loss_and_gradients(kind: str, image: Tensor, text: Tensor, **how: Any) -> list[Tensor]:
    image, text = (x.clone().requires_grad_() for x in (image, text))
    scale, bias = (image.new_tensor([x]).requires_grad_() for x in (14.0, -7.0))
    if kind == "softmax":
        loss = info_nce(image, text, logit_scale=scale, **how)
    else:
        loss = sigmoid_loss(image, text, logit_scale=scale, logit_bias=bias, **how)
    loss.backward()
    assert scale.grad is not None
    return [loss.detach(), scale.grad, image.grad, text.grad]  # type: ignore[list-item]


def every_case(device: str, group_size: int | None) -> list[list[Tensor]]:
    """Of one rank; loss and scale averaged, gradients of its own rows divided by the ranks."""
    topology = Topology.current()
    own = [x.chunk(topology.world_size)[topology.rank].to(device) for x in vectors()]
    group = split_ranks(group_size, key="group")
    found = []
    for kind, implementation in CASES:
        how = {"implementation": implementation, "tile": 5, "group": group}
        values = [value / topology.world_size for value in loss_and_gradients(kind, *own, **how)]
        for value in values[:2]:
            torch.distributed.all_reduce(value)
        found.append([value.cpu() for value in values])
    return found


def check_ranks(ranks: list[list[list[Tensor]]], group_size: int | None) -> None:
    image, text = vectors()
    size = PAIRS if group_size is None else PAIRS // len(ranks) * group_size
    for number, (kind, _) in enumerate(CASES):
        parts = [(image[a : a + size], text[a : a + size]) for a in range(0, PAIRS, size)]
        groups = [loss_and_gradients(kind, *part, implementation="dense") for part in parts]
        for rank in ranks:
            for found, values in zip(rank[number][:2], list(zip(*groups, strict=True))[:2], strict=True):
                torch.testing.assert_close(found, sum(values) / len(groups), rtol=0, atol=1e-10)
        for place in (2, 3):
            found = torch.cat([rank[number][place] for rank in ranks])
            expected = torch.cat([group[place] for group in groups]) / len(groups)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("group_size", [None, 1])
def test_averages_over_ranks_equal_one_process(group_size: int | None, tmp_path: Path) -> None:
    check_ranks(run_nccl(every_case, 2, tmp_path, "cuda", group_size), group_size)
