import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gloo import run_gloo
from torch import Tensor, nn

from vlm.distributed import Topology
from vlm.losses import info_nce

ROWS, DIM = 8, 5


def reference(image: Tensor, text: Tensor, scale: Tensor, ids: Tensor | None = None) -> Tensor:
    """One pair at a time, one process, all rows."""
    total = image.new_zeros(())
    for i in range(len(image)):
        kept = [j for j in range(len(image)) if j == i or ids is None or ids[j] != ids[i]]
        forward = torch.stack([scale.squeeze() * image[i] @ text[j] for j in kept])
        backward = torch.stack([scale.squeeze() * text[i] @ image[j] for j in kept])
        own = kept.index(i)
        total = total - forward.log_softmax(0)[own] / 2 - backward.log_softmax(0)[own] / 2
    return total / len(image)


class Towers(nn.Module):
    """Two linear towers and a scale, the same on every rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(4, DIM, dtype=torch.float64)
        self.text = nn.Linear(4, DIM, dtype=torch.float64)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(7.0)], dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.normalize(self.image(x), dim=1), F.normalize(self.text(y), dim=1), self.logit_scale.exp()


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    return x, y, torch.tensor([0, 1, 2, 1, 3, 0, 4, 1])


def one_rank(masked: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's loss and gradients, both averaged over ranks as data parallelism does."""
    topology = Topology.current()
    x, y, ids = (t.chunk(topology.world_size)[topology.rank] for t in data())
    towers = Towers()
    image, text, scale = towers(x, y)
    loss = info_nce(image, text, logit_scale=scale, caption_id=ids if masked else None).loss
    loss.backward()
    for value in [loss.data, *(p.grad for p in towers.parameters())]:
        torch.distributed.all_reduce(value)
        value /= topology.world_size
    return loss.detach(), {name: p.grad for name, p in towers.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_rank_averaged_loss_and_gradients_equal_single_process(
    world_size: int, masked: bool, tmp_path: Path
) -> None:
    x, y, ids = data()
    towers = Towers()
    expected = reference(*towers(x, y), ids if masked else None)
    expected.backward()
    for loss, grads in run_gloo(one_rank, world_size, tmp_path, masked):
        torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-10)
        for name, parameter in towers.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=0, atol=1e-10, msg=name)


def without_gather_backward(masked: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """`one_rank` with a gather whose backward keeps this rank's own contribution only."""
    from vlm.distributed import collectives

    def broken(ctx, grad):  # type: ignore[no-untyped-def]
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        return grad.chunk(world)[rank]

    collectives._GatherRows.backward = staticmethod(broken)
    return one_rank(masked)


def test_a_gather_without_its_backward_is_noticed(tmp_path: Path) -> None:
    x, y, _ = data()
    towers = Towers()
    reference(*towers(x, y)).backward()
    _, grads = run_gloo(without_gather_backward, 2, tmp_path, False)[0]
    gap = (grads["image.weight"] - towers.image.weight.grad).abs().max()
    assert gap > 1e-3


def test_equal_captions_are_counted() -> None:
    x, y, ids = data()
    image, text, scale = Towers()(x, y)
    share = info_nce(image, text, logit_scale=scale, caption_id=ids).masked_share
    pairs = sum(int(ids[i] == ids[j]) for i in range(ROWS) for j in range(ROWS) if i != j)
    assert share == pytest.approx(pairs / (ROWS * (ROWS - 1)))
