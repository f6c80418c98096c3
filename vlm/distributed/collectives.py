"""Collectives over all ranks (or a group), each the identity in a process that stands alone."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm.distributed.topology import Group, alone

T = TypeVar("T")


class _GatherRows(torch.autograd.Function):
    """All-gather along rows whose backward sums what every rank sends back to the rows' owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group = group
        out = rows.new_empty((group.size * rows.shape[0], *rows.shape[1:]))
        dist.all_gather(list(out.chunk(group.size)), rows.contiguous(), group=group.handle)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        group = ctx.group
        if dist.get_backend(group.handle) != "gloo":
            own = grads[0].new_empty((grads[0].shape[0] // group.size, *grads[0].shape[1:]))
            dist.reduce_scatter(own, list(grads[0].contiguous().chunk(group.size)), group=group.handle)
            return own, None
        # gloo has no reduce_scatter for every dtype, so sum everything and keep this rank's slice.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=group.handle)
        return total.chunk(group.size)[group.rank], None


def gather_rows(rows: Shaped[Tensor, "b *rest"], group: Group | None = None) -> Shaped[Tensor, "n *rest"]:
    """Concatenate the rows of every rank in rank order, n = ranks · b; gradients flow back to their owner.

    Every rank must bring the same number of rows. The gradient of a row is the sum over ranks of what each
    rank's loss sends to it: with losses that are averaged over ranks this is W times the global gradient
    on the owner, which data-parallel averaging divides by W.

    Args:
        group: the ranks that take part; None for all.
    """
    group = group or Group.everyone()
    if group.size == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, group)  # type: ignore[no-untyped-call]
    return gathered


def logsumexp_over_ranks(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """log Σ exp(x) over the ranks of a group, element by element; no gradients."""
    if group.size == 1:
        return x
    largest = x.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group.handle)
    total = (x - largest).masked_fill_(largest == -torch.inf, -torch.inf).exp_()  # not -inf - -inf
    dist.all_reduce(total, group=group.handle)
    return total.log_().add_(largest)


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
