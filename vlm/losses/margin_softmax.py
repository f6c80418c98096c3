"""Softmax with a margin over classes whose centres are cut into the rows of ranks.

Every rank computes the logits of all samples over its own rows of centres, in tiles, and keeps none. What
goes between ranks is the samples' vectors and labels, and a few numbers a sample. Every rank then has the
same loss and only its own centres' part of the gradient; see `own_part`.

Shapes: b samples of this rank, n samples of all ranks, l classes of a sample, c centres of this rank,
d dimensions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm.distributed import Group, gather_rows, logsumexp_over_ranks, own_part, sum_parts
from vlm.losses.product import without_autocast
from vlm.losses.tiled import default_side, slices, softplus

_BLOCK = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """cos θ of a sample and its own class becomes cos(m1·θ + m2) - m3.

    Beyond m1·θ + m2 = π, where the cosine would rise again, it goes on falling as in SphereFace: for k times
    π, (-1)^k cos - 2k.

    Args:
        m1: factor on the angle, at least 1 (SphereFace).
        m2: radians added to the angle (ArcFace).
        m3: taken off the cosine (CosFace).
        gradient: `exact`; or `straight_through`, as if the margin changed the cosine by a constant, which is
            what published results were trained with.

    Source: arXiv:1801.07698, equation 4; arXiv:1704.08063, equation 7.
    """

    m1: float
    m2: float
    m3: float
    gradient: Literal["straight_through", "exact"]

    def __call__(self, cosine: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        if self.m1 == 1 and self.m2 == 0:
            return cosine - self.m3
        with_margin: Tensor = _AngularMargin.apply(cosine, self)  # type: ignore[no-untyped-call]
        return with_margin - self.m3


class _AngularMargin(torch.autograd.Function):
    """Not by autograd of arccos, whose gradient is infinite at 1 even where it is multiplied by 0."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, margin: Margin) -> Tensor:
        theta = cosine.clamp(-1, 1).acos()
        angle = margin.m1 * theta + margin.m2
        turns = (angle / math.pi).floor()
        sign = 1 - 2 * (turns % 2)
        ctx.slope = torch.ones_like(cosine)
        if margin.gradient == "exact":
            sine = theta.sin().clamp(min=1e-6)
            ctx.slope = margin.m1 * sign * angle.sin() / sine
        return sign * angle.cos() - 2 * turns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.slope, None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLogits:
    """What losses over classes are made of; the same on every rank.

    Args:
        cosine: of each sample and its own classes.
        own: its multiple with the margin.
        present: False where a sample has fewer than l classes.
        others: log-sum-exp over all other classes that were sampled.
    """

    cosine: Float[Tensor, "n l"]
    own: Float[Tensor, "n l"]
    present: Bool[Tensor, "n l"]
    others: Float[Tensor, " n"]


def class_logits(
    features: Float[Tensor, "b d"],
    labels: Int64[Tensor, "n l"],
    *,
    centres: Float[Tensor, "c d"],
    classes: Int64[Tensor, " c"],
    scale: float,
    margin: Margin,
    filter_above: float | None = None,
    dims: Int64[Tensor, " k"] | None = None,
    tile: int | None = None,
) -> ClassLogits:
    """Scaled cosines of all samples and their own classes, and a sum over all others.

    Args:
        features: vectors of this rank's samples, of any length.
        labels: classes of the samples of all ranks, in rank order; -1 where a sample has fewer than l.
        centres: the rows of this rank that take part, of any length. Every class in `labels` is among those
            of some rank.
        classes: which classes these are, ascending.
        scale: multiplier on the cosine.
        filter_above: classes other than a sample's own whose cosine is above it do not count: the sample
            probably belongs to them too.
        dims: the dimensions that count, before lengths are taken; the same on every rank. None: all.
        tile: side of a tile of logits; None: what suits the device.

    Source: arXiv:2203.15565, section 3; the choice of dimensions arXiv:2304.05884, section 3.2.
    """
    if dims is not None:
        features, centres = features[:, dims], centres[:, dims]
    rows = gather_rows(own_part(features))
    dtype = torch.promote_types(rows.dtype, torch.float32)
    everyone = Group.everyone()
    part, others = _Cosines.apply(  # type: ignore[no-untyped-call]
        F.normalize(rows.to(dtype), dim=1),
        centres.to(dtype),
        _own_rows(labels, classes),
        scale,
        math.inf if filter_above is None else filter_above * scale,
        tile,
        everyone,
    )
    cosine = sum_parts(part, everyone)
    return ClassLogits(cosine=cosine, own=scale * margin(cosine), present=labels >= 0, others=others)


def _own_rows(labels: Int64[Tensor, "n l"], classes: Int64[Tensor, " c"]) -> Int64[Tensor, "n l"]:
    """Where a sample's classes stand among those of this rank; -1 for those of other ranks."""
    if not len(classes):
        return torch.full_like(labels, -1)
    at = torch.searchsorted(classes, labels).clamp_(max=len(classes) - 1)
    return at.masked_fill(classes[at] != labels, -1)


class _Cosines(torch.autograd.Function):
    """Cosines of samples and those of their classes that are here, 0 for others; and the log-sum-exp of the
    scaled cosines over the classes of all ranks that are not a sample's own.

    Centres come with any length: a normalised copy of very many rows would take as much memory as their
    gradient. What it gives is the same on every rank, but for the cosines; each rank has its centres' part of
    the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        centres: Tensor,
        at: Tensor,
        scale: float,
        above: float,
        tile: int | None,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        inverse = 1 / torch.linalg.vector_norm(centres, dim=1).clamp_(min=1e-12)
        logits = _Logits(rows, centres, inverse * scale, at, above, tile or default_side(rows))
        by_row = rows.new_full((len(rows),), -torch.inf)
        for a, _, values in logits.tiles():
            by_row[a] = torch.logaddexp(by_row[a], values.logsumexp(1))
        by_row = logsumexp_over_ranks(by_row, group)
        here = at >= 0
        sample, own = here.nonzero()[:, 0], at[here]
        cosine = rows.new_zeros(at.shape)
        cosine[here] = (rows[sample] * centres[own]).sum(1) * inverse[own]
        ctx.save_for_backward(by_row, inverse)
        ctx.logits = logits
        return cosine, by_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cosine_grad: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        (by_row, inverse), logits = ctx.saved_tensors, ctx.logits
        by_row = by_row.masked_fill(by_row == -torch.inf, 0)  # no class but its own: exp(-inf - 0)
        rows, centres = torch.zeros_like(logits.rows), torch.zeros_like(logits.centres)
        for a, c, values in logits.tiles():
            weight = values.sub_(by_row[a, None]).exp_().mul_(grad[a, None]).mul_(logits.factor[c])
            with without_autocast(weight):
                rows[a].addmm_(weight, logits.centres[c])
                centres[c].addmm_(weight.T, logits.rows[a])
        here = logits.at >= 0
        sample, own = here.nonzero()[:, 0], logits.at[here]
        weight = (cosine_grad[here] * inverse[own])[:, None]
        rows.index_add_(0, sample, weight * logits.centres[own])
        centres.index_add_(0, own, weight * logits.rows[sample])
        for c in slices(len(centres), _BLOCK):  # a change of a centre's length changes no cosine
            unit = logits.centres[c] * inverse[c, None]
            centres[c] -= unit.mul_((unit * centres[c]).sum(1, keepdim=True))
        return rows, centres, None, None, None, None, None


class _Logits(NamedTuple):
    """Scaled cosines of samples and this rank's classes, a tile at a time.

    Args:
        factor: scale over the length of a centre.
        at: rows of a sample's own classes, which do not count.
        above: larger logits do not count.
        side: of a tile.
    """

    rows: Float[Tensor, "n d"]
    centres: Float[Tensor, "c d"]
    factor: Float[Tensor, " c"]
    at: Int64[Tensor, "n l"]
    above: float
    side: int

    def tiles(self) -> Iterator[tuple[slice, slice, Float[Tensor, "tn tc"]]]:
        """Samples, classes and logits of each tile; -inf for those that do not count."""
        for a in slices(len(self.rows), self.side):
            for c in slices(len(self.centres), self.side):
                with without_autocast(self.rows):
                    logits = (self.rows[a] @ self.centres[c].T).mul_(self.factor[c])
                if self.above < math.inf:
                    logits.masked_fill_(logits > self.above, -torch.inf)
                at = self.at[a] - c.start
                sample, label = ((self.at[a] >= 0) & (at >= 0) & (at < logits.shape[1])).nonzero(
                    as_tuple=True
                )
                logits[sample, at[sample, label]] = -torch.inf
                yield a, c, logits


def margin_softmax(logits: ClassLogits) -> Float[Tensor, ""]:
    """Cross-entropy of a sample's own class beside all classes that are not its own.

    With several own classes the mean over them, each beside the same other classes: none is a negative for
    another one.
    """
    loss = softplus(logits.others[:, None] - logits.own).masked_fill(~logits.present, 0)
    count = logits.present.sum(1)
    return loss.sum(1).div(count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def mlcd(logits: ClassLogits) -> Float[Tensor, ""]:
    """log(1 + Σ exp(-own)) + log(1 + Σ exp(other)): multi-label cluster discrimination.

    Source: arXiv:2407.17331, equation 5.
    """
    pull = (-logits.own).masked_fill(~logits.present, -torch.inf)
    pull = torch.cat([torch.zeros_like(pull[:, :1]), pull], dim=1).logsumexp(1)
    loss = pull + softplus(logits.others)
    labelled = logits.present.any(1)
    return loss.masked_fill(~labelled, 0).sum() / labelled.sum().clamp(min=1)
