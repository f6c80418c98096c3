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
class _Logits:
    """`scale · row · column + bias`, in float32 or better, a tile at a time."""

    rows: Float[Tensor, "r d"]
    columns: Float[Tensor, "c d"]
    scale: Float[Tensor, "1"]
    bias: Float[Tensor, "1"] | None
    mask: Mask
    tile: int | None

    @property
    def side(self) -> int:
        """Of a tile."""
        return self.tile or (GPU_TILE if self.rows.is_cuda else CPU_TILE)

    def tiles(self) -> Iterator[tuple[slice, slice, Float[Tensor, "tr tc"]]]:
        """Rows, columns and logits of each tile."""
        for a in _slices(len(self.rows), self.side):
            rows = self.rows[a].to(self.scale.dtype) * self.scale
            for c in _slices(len(self.columns), self.side):
                logits = rows @ self.columns[c].to(self.scale.dtype).T
                if self.bias is not None:
                    logits += self.bias
                self.mask.apply(logits, a, c)
                yield a, c, logits

    def backward(self, weights: Iterator[tuple[slice, slice, Float[Tensor, "tr tc"]]]) -> tuple[Tensor, ...]:
        """Gradients of rows, columns, scale and bias, from those of each tile's logits."""
        rows = torch.zeros_like(self.rows, dtype=self.scale.dtype)
        columns = torch.zeros_like(self.columns, dtype=self.scale.dtype)
        bias = torch.zeros_like(self.scale)
        for a, c, weight in weights:
            rows[a].addmm_(weight, self.columns[c].to(weight.dtype))
            columns[c].addmm_(weight.T, self.rows[a].to(weight.dtype))
            bias += weight.sum()
        # Σ weight · cosine without the tiles: so far, rows[i] · row i is the part of row i.
        scale = (rows * self.rows).sum().reshape(1)
        rows, columns = rows.mul_(self.scale), columns.mul_(self.scale)
        return rows.to(self.rows.dtype), columns.to(self.columns.dtype), scale, bias


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        mask: Mask,
        num_texts: int,
        tile: int | None,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=None, mask=mask, tile=tile)
        by_row = scale.new_full((len(rows),), -torch.inf)
        by_text = scale.new_full((num_texts,), -torch.inf)
        for a, c, values in logits.tiles():
            by_row[a] = torch.logaddexp(by_row[a], values.logsumexp(1))
            texts = by_text[c]  # fewer than the tile has columns where the texts of pairs end
            by_text[c] = torch.logaddexp(texts, values[:, : len(texts)].logsumexp(0))
        by_text = logsumexp_over_ranks(by_text, group)
        ctx.save_for_backward(rows, columns, scale, by_row, by_text)
        ctx.mask, ctx.tile, ctx.group = mask, tile, group
        return by_row, by_text[mask.first : mask.first + len(rows)].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_grad: Tensor, text_grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, by_row, by_text = ctx.saved_tensors
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=None, mask=ctx.mask, tile=ctx.tile)
        text_grads = gather_rows(text_grad.contiguous(), ctx.group)

        def weights() -> Iterator[tuple[slice, slice, Tensor]]:
            for a, c, values in logits.tiles():
                weight = (values - by_row[a, None]).exp_().mul_(row_grad[a, None])
                texts = by_text[c]
                weight[:, : len(texts)] += values[:, : len(texts)].sub_(texts).exp_().mul_(text_grads[c])
                yield a, c, weight

        return *logits.backward(weights())[:3], None, None, None, None


def tiled_logsumexp(
    image: Float[Tensor, "r d"],
    columns: Float[Tensor, "c d"],
    *,
    logit_scale: Float[Tensor, "1"],
    mask: Mask,
    num_texts: int,
    tile: int | None,
    group: Group,
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Log-sum-exp of the logits of each own image over all columns, and of each own text over all images.

    Args:
        columns: the texts of all pairs of the group, in rank order, then any others.
        logit_scale: multiplier on the cosine, float32 or float64: what sums are kept in.
        num_texts: how many of the columns are texts of pairs.
        tile: side of a tile; None: what suits the device.
        group: ranks whose images the second sum runs over.
    """
    by_row, by_text = _LogSumExp.apply(image, columns, logit_scale, mask, num_texts, tile, group)  # type: ignore[no-untyped-call]
    return by_row, by_text


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, mask: Mask, tile: int | None
    ) -> Tensor:
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=bias, mask=mask, tile=tile)
        total = scale.new_zeros(len(rows))
        for a, _, values in logits.tiles():
            total[a] -= F.logsigmoid(-values).sum(1)  # softplus, without its threshold
        ctx.save_for_backward(rows, columns, scale, bias)
        ctx.mask, ctx.tile = mask, tile
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias = ctx.saved_tensors
        logits = _Logits(rows=rows, columns=columns, scale=scale, bias=bias, mask=ctx.mask, tile=ctx.tile)
        weights = ((a, c, values.sigmoid_().mul_(grad[a, None])) for a, c, values in logits.tiles())
        return *logits.backward(weights), None, None


def tiled_softplus(
    image: Float[Tensor, "r d"],
    columns: Float[Tensor, "c d"],
    *,
    logit_scale: Float[Tensor, "1"],
    logit_bias: Float[Tensor, "1"],
    mask: Mask,
    tile: int | None,
) -> Float[Tensor, " r"]:
    """Sum of softplus(logit) of each own image over all columns; arguments as of `tiled_logsumexp`."""
    total: Tensor = _SoftplusSum.apply(image, columns, logit_scale, logit_bias, mask, tile)  # type: ignore[no-untyped-call]
    return total


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
