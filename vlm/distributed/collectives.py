"""Collectives over all ranks (or a group), each the identity in a process that stands alone."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

T = TypeVar("T")


def alone() -> bool:
    """Whether this process has no peers."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


class _GatherRows(torch.autograd.Function):
    """All-gather along rows whose backward sums what every rank sends back to the rows' owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        out = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(out, rows.contiguous())
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # gloo has no reduce_scatter for every dtype, so sum everything and keep this rank's slice.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "n *rest"]:
    """Concatenate the rows of every rank in rank order, n = ranks · b; gradients flow back to their owner.

    Every rank must bring the same number of rows. The gradient of a row is the sum over ranks of what each
    rank's loss sends to it: with losses that are averaged over ranks this is W times the global gradient
    on the owner, which data-parallel averaging divides by W.
    """
    if alone():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def gather_objects(value: T) -> list[T]:
    """Every rank's picklable value, in rank order, on every rank."""
    if alone():
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a detached tensor over all ranks."""
    if alone():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a detached tensor over all ranks."""
    if alone():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(value: Tensor) -> Tensor:
    """Largest of each element of a detached tensor over all ranks."""
    if alone():
        return value.detach()
    largest = value.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest
