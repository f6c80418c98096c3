"""Contrastive losses over the pairs of every rank, or of every rank of a group.

Each returns this rank's share: its mean over ranks is the global loss, and so are the gradients (see
docs/concepts/gradient_contract.md), whichever way it is computed:

* `dense`: every rank computes the whole matrix of logits. The reference.
* `local_rows`: a rank computes the rows of its images and those of its texts, and stores both.
* `tiled`: a rank computes the rows of its images in tiles, and again for the gradient. Stores none.

Shapes: b pairs of this rank, n pairs of all ranks of the group, k hard negatives of a pair, d dimensions.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vlm.distributed import Group, gather_rows
from vlm.losses.product import differentiable_product
from vlm.losses.tiled import Mask, Walk, softplus, tiled_logsumexp, tiled_softplus

Implementation = Literal["dense", "local_rows", "tiled"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardNegatives:
    """Texts that are wrong for an image although they resemble its own; further columns of its logits.

    Args:
        text: unit vectors.
        present: False where a pair has fewer than k.
        scope: whose images they are negatives of: those of their `own` pair, or of `all` pairs.
    """

    text: Float[Tensor, "b k d"]
    present: Bool[Tensor, "b k"]
    scope: Literal["own", "all"]


def info_nce(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    *,
    logit_scale: Float[Tensor, "1"],
    implementation: Implementation,
    caption_id: Int64[Tensor, " b"] | None = None,
    negatives: HardNegatives | None = None,
    group: Group | None = None,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Softmax cross-entropy of each image over all texts and of each text over all images, their mean.

    Args:
        image, text: unit vectors, row i of both belongs to pair i.
        logit_scale: multiplier on cosine similarity, already exponentiated; its dtype is that of all sums,
            also where vectors are bfloat16.
        caption_id: pairs with equal ids are no negatives of each other; None: every other pair is one.
        negatives: texts that images alone are compared with.
        group: ranks whose pairs are each other's negatives; None: all.
        tile: side of the tiles of `tiled`; None: what suits the device.

    Source: arXiv:2103.00020, figure 3; hard negatives arXiv:2210.01936.
    """
    world = _World.of(
        image, text, dtype=logit_scale.dtype, caption_id=caption_id, negatives=negatives, group=group
    )
    match implementation:
        case "dense":
            logits = world.all_logits(logit_scale)
            over_texts = world.own(logits.logsumexp(1))
            over_images = world.own(logits[:, : world.pairs].logsumexp(0))
        case "local_rows":
            over_texts = world.image_logits(logit_scale).logsumexp(1)
            over_images = world.text_logits(logit_scale).logsumexp(1)
        case "tiled":
            over_texts, over_images = tiled_logsumexp(
                world.image,
                world.columns,
                logit_scale=logit_scale,
                walk=world.walk(tile),
                num_texts=world.pairs,
                group=world.group,
            )
    if world.own_negatives is not None:
        hard = _own_logits(world.image, world.own_negatives, logit_scale)
        over_texts = torch.cat([over_texts[:, None], hard], dim=1).logsumexp(1)
    return ((over_texts + over_images) / 2 - _positives(world.image, world.text, logit_scale)).mean()


def sigmoid_loss(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    *,
    logit_scale: Float[Tensor, "1"],
    logit_bias: Float[Tensor, "1"],
    implementation: Implementation,
    caption_id: Int64[Tensor, " b"] | None = None,
    negatives: HardNegatives | None = None,
    group: Group | None = None,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Is this text of this image, for every image and every text: n · n decisions, summed, over n.

    Args:
        logit_bias: added to every logit.

    The others are those of `info_nce`.

    Source: arXiv:2303.15343, equation 1 and algorithm 1.
    """
    world = _World.of(
        image, text, dtype=logit_scale.dtype, caption_id=caption_id, negatives=negatives, group=group
    )
    match implementation:
        case "dense":
            loss = world.own(softplus(world.all_logits(logit_scale, logit_bias)).sum(1))
        case "local_rows":
            loss = softplus(world.image_logits(logit_scale, logit_bias)).sum(1)
        case "tiled":
            loss = tiled_softplus(
                world.image,
                world.columns,
                logit_scale=logit_scale,
                logit_bias=logit_bias,
                walk=world.walk(tile),
            )
    if world.own_negatives is not None:
        loss = loss + softplus(_own_logits(world.image, world.own_negatives, logit_scale) + logit_bias).sum(1)
    # So far the positives count as negatives, and softplus(-x) = softplus(x) - x.
    return (loss - _positives(world.image, world.text, logit_scale) - logit_bias).mean()


def equal_caption_share(caption_id: Int64[Tensor, " b"], group: Group | None = None) -> Float[Tensor, ""]:
    """Share of this rank's n - 1 negatives of each pair that have the caption of the pair itself."""
    everyone = gather_rows(caption_id, group)
    ids, counts = torch.unique(everyone, return_counts=True)
    equal: Tensor = counts[torch.searchsorted(ids, caption_id)] - 1
    return equal.float().mean() / max(1, len(everyone) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """What the pairs of this rank are compared with, gathered with gradients."""

    image: Float[Tensor, "b d"]
    text: Float[Tensor, "b d"]
    columns: Float[Tensor, "c d"]
    """The texts of all pairs, then the hard negatives of all pairs that are for all images."""
    pairs: int
    mask: Mask
    own_negatives: HardNegatives | None
    group: Group
    half: bool
    """Whether the vectors were bfloat16; they are converted, so that their gradients are rounded once."""

    @classmethod
    def of(
        cls,
        image: Tensor,
        text: Tensor,
        *,
        dtype: torch.dtype,
        caption_id: Tensor | None,
        negatives: HardNegatives | None,
        group: Group | None,
    ) -> "_World":
        group = group or Group.everyone()
        vectors = [image, text] if negatives is None else [image, text, negatives.text]
        half = all(x.dtype == torch.bfloat16 for x in vectors)
        image, text = image.to(dtype), text.to(dtype)
        if negatives is not None:
            negatives = replace(negatives, text=negatives.text.to(dtype))
        columns = gather_rows(text, group)
        pairs, present, own_negatives = len(columns), None, negatives
        if negatives is not None and negatives.scope == "all":
            columns = torch.cat([columns, gather_rows(negatives.text.flatten(0, 1), group)])
            there = gather_rows(negatives.present.flatten(), group)
            present, own_negatives = torch.cat([there.new_ones(pairs), there]), None
        mask = Mask(
            first=group.rank * len(image),
            row_id=caption_id,
            column_id=None if caption_id is None else gather_rows(caption_id, group),
            present=present,
        )
        return cls(
            image=image,
            text=text,
            columns=columns,
            pairs=pairs,
            mask=mask,
            own_negatives=own_negatives,
            group=group,
            half=half,
        )

    def image_logits(self, scale: Tensor, bias: Tensor | None = None) -> Float[Tensor, "b c"]:
        """Of this rank's images over all columns."""
        return _logits(self.image, self.columns, scale=scale, bias=bias, mask=self.mask, half=self.half)

    def text_logits(self, scale: Tensor) -> Float[Tensor, "b n"]:
        """Of this rank's texts over all images."""
        mask = replace(self.mask, present=None)
        images = gather_rows(self.image, self.group)
        return _logits(self.text, images, scale=scale, bias=None, mask=mask, half=self.half)

    def all_logits(self, scale: Tensor, bias: Tensor | None = None) -> Float[Tensor, "n c"]:
        """Of all images over all columns."""
        mask = replace(self.mask, first=0, row_id=self.mask.column_id)
        images = gather_rows(self.image, self.group)
        return _logits(images, self.columns, scale=scale, bias=bias, mask=mask, half=self.half)

    def walk(self, tile: int | None) -> Walk:
        """Over the logits of this rank's images, in tiles."""
        return Walk(mask=self.mask, tile=tile, half=self.half)

    def own(self, rows: Float[Tensor, " n"]) -> Float[Tensor, " b"]:
        """This rank's part of a value for each pair."""
        return rows[self.mask.first : self.mask.first + len(self.image)]


def _logits(
    rows: Tensor, columns: Tensor, *, scale: Tensor, bias: Tensor | None, mask: Mask, half: bool
) -> Tensor:
    logits = differentiable_product(rows, columns, scale=scale, half=half, first=mask.first)
    if bias is not None:
        logits = logits + bias
    mask.apply(logits, slice(0, len(rows)), slice(0, len(columns)))
    return logits


def _own_logits(image: Tensor, negatives: HardNegatives, scale: Tensor) -> Float[Tensor, "b k"]:
    logits = scale * (image[:, None] * negatives.text).sum(2)
    return logits.masked_fill(~negatives.present, -torch.inf)


def _positives(image: Tensor, text: Tensor, scale: Tensor) -> Float[Tensor, " b"]:
    return scale * (image * text).sum(1)
