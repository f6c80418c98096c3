"""Collectives over all ranks (or a group), each the identity in a process that stands alone."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm.distributed.topology import Group, Topology, alone

T = TypeVar("T")

# torch 2.13 has renamed them. Those with lists of tensors would go through a buffer as large as the whole.
gather_into: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_and_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class _GatherRows(torch.autograd.Function):
    """All-gather along rows whose backward sums what every rank sends back to the rows' owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group = group
        out = rows.new_empty((group.size * rows.shape[0], *rows.shape[1:]))
        gather_into(out, rows.contiguous(), group=group.handle)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        group, grad = ctx.group, grads[0].contiguous()
        own = grad.new_empty((len(grad) // group.size, *grad.shape[1:]))
        reduce_and_scatter(own, grad, group=group.handle)
        return own, None


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


class _SumParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        total = part.clone()
        dist.all_reduce(total, group=group.handle)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def sum_parts(part: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """Sum over the ranks of a group, of which every rank then computes the same loss.

    A rank's part gets the gradient of that one loss, not of W equal ones.
    """
    if group.size == 1:
        return part
    total: Tensor = _SumParts.apply(part, group)  # type: ignore[no-untyped-call]
    return total


class _OwnPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world_size: int) -> Tensor:
        ctx.world_size = world_size
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.world_size, None


def own_part(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The identity, for what enters a loss of which every rank computes one part of the gradient.

    All parts together are the gradient of the global loss; data-parallel averaging will divide it by W, so
    it is multiplied by W here.
    """
    topology = Topology.current()
    if topology.world_size == 1:
        return x
    same: Tensor = _OwnPart.apply(x, topology.world_size)  # type: ignore[no-untyped-call]
    return same


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


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with what the first rank has in them."""
    if not alone():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a detached tensor over all ranks."""
    total = sum_over_ranks(value)
    return total if alone() else total / dist.get_world_size()


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
