"""Sums over rows and columns of a matrix of logits that is never stored.

The logits of this rank's images against all texts are computed in tiles, forward and again backward, so that
memory grows with the rows and the columns and not with their product. One walk serves both directions of
the contrastive loss: the images stay where they are, only texts travel.

Shapes: r rows (images of this rank), c columns (texts of all ranks, then other texts), d dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm.distributed import Group, gather_rows, logsumexp_over_ranks
from vlm.losses.product import ProductGradients, product

CPU_TILE, GPU_TILE = 1024, 4096
"""Side of a tile: large enough for full speed of a matrix product, small beside the features themselves. CPUs
go over logits faster while they stay in the cache; a GPU needs larger products to pay for each launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Which logits do not count.

    Args:
        first: the column of row 0's own text; that of row i is `first + i`.
        row_id, column_id: pairs with equal ids do not count, a row's own column does. Columns beyond the ids
            are compared with nothing. None: all count.
        present: False for columns that stand for nothing. None: all count.
    """

    first: int
    row_id: Int64[Tensor, " r"] | None = None
    column_id: Int64[Tensor, " n"] | None = None
    present: Bool[Tensor, " c"] | None = None

    def apply(self, logits: Float[Tensor, "tr tc"], rows: slice, columns: slice) -> None:
        """Set what does not count to -inf, within the tile of these rows and columns."""
        if self.present is not None:
            logits.masked_fill_(~self.present[columns], -torch.inf)
        if self.row_id is None or self.column_id is None:
            return
        same = self.row_id[rows, None] == self.column_id[None, columns]
        # Where the own columns of these rows cross this tile.
        same.diagonal(self.first + rows.start - columns.start).fill_(False)
        logits[:, : same.shape[1]].masked_fill_(same, -torch.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """How to go over the logits.

    Args:
        mask: which do not count.
        tile: side of a tile; None: what suits the device.
        half: whether all numbers of the vectors are numbers of bfloat16.
    """

    mask: Mask
    tile: int | None
    half: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Logits:
    """`scale · row · column + bias`, in float32 or better, a tile at a time."""

    rows: Float[Tensor, "r d"]
    columns: Float[Tensor, "c d"]
    scale: Float[Tensor, "1"]
    bias: Float[Tensor, "1"] | None
    walk: Walk

    @property
    def side(self) -> int:
        """Of a tile."""
        return self.walk.tile or default_side(self.rows)

    def tiles(self) -> Iterator[tuple[slice, slice, Float[Tensor, "tr tc"]]]:
        """Rows, columns and logits of each tile."""
        for a in slices(len(self.rows), self.side):
            for c in slices(len(self.columns), self.side):
                logits = product(self.rows[a], self.columns[c], scale=self.scale, half=self.walk.half)
                if self.bias is not None:
                    logits += self.bias
                self.walk.mask.apply(logits, a, c)
                yield a, c, logits

    def backward(self, weights: Iterator[tuple[slice, slice, Float[Tensor, "tr tc"]]]) -> tuple[Tensor, ...]:
        """Gradients of rows, columns, scale and bias, from those of each tile's logits."""
        walk = self.walk
        gradients = ProductGradients(
            self.rows, self.columns, scale=self.scale, half=walk.half, first=walk.mask.first
        )
        bias = torch.zeros_like(self.scale)
        for a, c, weight in weights:
            gradients.add(weight, a, c)
            bias += weight.sum()
        return *gradients.read(), bias


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        walk: Walk,
        num_texts: int,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=None, walk=walk)
        by_row = scale.new_full((len(rows),), -torch.inf)
        by_text = scale.new_full((num_texts,), -torch.inf)
        for a, c, values in logits.tiles():
            by_row[a] = torch.logaddexp(by_row[a], values.logsumexp(1))
            texts = by_text[c]  # fewer than the tile has columns where the texts of pairs end
            by_text[c] = torch.logaddexp(texts, values[:, : len(texts)].logsumexp(0))
        by_text = logsumexp_over_ranks(by_text, group)
        ctx.save_for_backward(rows, columns, scale, by_row, by_text)
        ctx.walk, ctx.group = walk, group
        first = walk.mask.first
        return by_row, by_text[first : first + len(rows)].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_grad: Tensor, text_grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, by_row, by_text = ctx.saved_tensors
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=None, walk=ctx.walk)
        text_grads = gather_rows(text_grad.contiguous(), ctx.group)

        def weights() -> Iterator[tuple[slice, slice, Tensor]]:
            for a, c, values in logits.tiles():
                weight = (values - by_row[a, None]).exp_().mul_(row_grad[a, None])
                texts = by_text[c]
                weight[:, : len(texts)] += values[:, : len(texts)].sub_(texts).exp_().mul_(text_grads[c])
                yield a, c, weight

        return *logits.backward(weights())[:3], None, None, None


def tiled_logsumexp(
    image: Float[Tensor, "r d"],
    columns: Float[Tensor, "c d"],
    *,
    logit_scale: Float[Tensor, "1"],
    walk: Walk,
    num_texts: int,
    group: Group,
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Log-sum-exp of the logits of each own image over all columns, and of each own text over all images.

    Args:
        columns: the texts of all pairs of the group, in rank order, then any others.
        logit_scale: multiplier on the cosine, float32 or float64: what sums are kept in.
        num_texts: how many of the columns are texts of pairs.
        group: ranks whose images the second sum runs over.
    """
    by_row, by_text = _LogSumExp.apply(image, columns, logit_scale, walk, num_texts, group)  # type: ignore[no-untyped-call]
    return by_row, by_text


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, walk: Walk) -> Tensor:
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=bias, walk=walk)
        total = scale.new_zeros(len(rows))
        for a, _, values in logits.tiles():
            total[a] -= F.logsigmoid(-values).sum(1)  # `softplus`, without a negated copy of the tile
        ctx.save_for_backward(rows, columns, scale, bias)
        ctx.walk = walk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias = ctx.saved_tensors
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=bias, walk=ctx.walk)
        weights = ((a, c, values.sigmoid_().mul_(grad[a, None])) for a, c, values in logits.tiles())
        return *logits.backward(weights), None


def tiled_softplus(
    image: Float[Tensor, "r d"],
    columns: Float[Tensor, "c d"],
    *,
    logit_scale: Float[Tensor, "1"],
    logit_bias: Float[Tensor, "1"],
    walk: Walk,
) -> Float[Tensor, " r"]:
    """Sum of softplus(logit) of each own image over all columns; arguments as of `tiled_logsumexp`."""
    total: Tensor = _SoftplusSum.apply(image, columns, logit_scale, logit_bias, walk)  # type: ignore[no-untyped-call]
    return total


def softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + exp(x)); torch's own is linear beyond 20."""
    return -F.logsigmoid(-x)


def default_side(x: Tensor) -> int:
    """Of a tile, on the device of `x`."""
    return GPU_TILE if x.is_cuda else CPU_TILE


def slices(length: int, step: int) -> Iterator[slice]:
    """A range in pieces."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
