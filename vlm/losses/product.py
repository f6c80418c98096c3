"""Products of vectors with vectors, in single precision or better, and their gradients.

Vectors that towers gave in bfloat16 come here converted, and every sum is one of float32. A GPU still
multiplies them as bfloat16, many times faster and without a loss: the product of two bfloat16 numbers is a
float32 number. CPUs have no such product.

Shapes: r rows, c columns, d dimensions.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def product(
    rows: Float[Tensor, "r d"], columns: Float[Tensor, "c d"], *, scale: Float[Tensor, "1"], half: bool
) -> Float[Tensor, "r c"]:
    """`scale · row · column` of each row and column; no gradients.

    Args:
        half: whether all numbers of rows and columns are numbers of bfloat16.
    """
    with without_autocast(rows):
        if half and _multiplies_halves(rows):
            return _into_single(rows.bfloat16(), columns.bfloat16().T).mul_(scale)
        return (rows * scale) @ columns.T  # rows are fewer numbers than their products


class ProductGradients:
    """Gradients of rows, columns and scale, added up over the tiles of a `product`.

    Args:
        first: the column that makes a pair with row 0; that of row i is `first + i`.
    """

    def __init__(
        self,
        rows: Float[Tensor, "r d"],
        columns: Float[Tensor, "c d"],
        *,
        scale: Float[Tensor, "1"],
        half: bool,
        first: int,
    ) -> None:
        self.rows, self.columns, self.scale, self.half, self.first = rows, columns, scale, half, first
        self._rows, self._columns = torch.zeros_like(rows), torch.zeros_like(columns)

    def add(self, weight: Float[Tensor, "tr tc"], a: slice, c: slice) -> None:
        """The share of the tile of rows `a` and columns `c`, whose own gradient is `weight`."""
        with without_autocast(weight):
            self._add(weight, a, c)

    def _add(self, weight: Tensor, a: slice, c: slice) -> None:
        rows, columns = self.rows[a], self.columns[c]
        if not (self.half and _multiplies_halves(rows)):
            self._rows[a].addmm_(weight, columns)
            self._columns[c].addmm_(weight.T, rows)
            return
        # Weights are rounded like the vectors, except those of pairs: 0.999 would become 1, which the loss
        # takes from it, and a pair that is known well would have nothing left to learn.
        rounded, offset = weight.bfloat16(), self.first + a.start - c.start
        rounded.diagonal(offset).zero_()
        self._rows[a] += _into_single(rounded, columns.bfloat16())
        self._columns[c] += _into_single(rounded.T, rows.bfloat16())
        own = weight.diagonal(offset)[:, None]
        i, j = (slice(start, start + len(own)) for start in (max(0, -offset), max(0, offset)))
        self._rows[a][i] += own * columns[j]
        self._columns[c][j] += own * rows[i]

    def read(self) -> tuple[Float[Tensor, "r d"], Float[Tensor, "c d"], Float[Tensor, "1"]]:
        """Of rows, columns and scale, once all tiles are added."""
        # Σ weight · cosine without the tiles: so far, _rows[i] · row i is the part of row i.
        scale = (self._rows * self.rows).sum().reshape(1)
        return self._rows.mul_(self.scale), self._columns.mul_(self.scale), scale


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, half: bool, first: int) -> Tensor:
        ctx.save_for_backward(rows, columns, scale)
        ctx.half, ctx.first = half, first
        return product(rows, columns, scale=scale, half=half)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale = ctx.saved_tensors
        gradients = ProductGradients(rows, columns, scale=scale, half=ctx.half, first=ctx.first)
        gradients.add(weight, slice(0, len(rows)), slice(0, len(columns)))
        return *gradients.read(), None, None


def differentiable_product(
    rows: Float[Tensor, "r d"],
    columns: Float[Tensor, "c d"],
    *,
    scale: Float[Tensor, "1"],
    half: bool,
    first: int,
) -> Float[Tensor, "r c"]:
    """`product` with `ProductGradients`; keeps its arguments, and nothing of the size of the result."""
    result: Tensor = _Product.apply(rows, columns, scale, half, first)  # type: ignore[no-untyped-call]
    return result


def without_autocast(x: Tensor) -> torch.autocast:
    """Products keep the precision they are written in, wherever a loss or its backward is called."""
    return torch.autocast(x.device.type, enabled=False)


def _multiplies_halves(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.float32


def _into_single(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b, out_dtype=torch.float32)
