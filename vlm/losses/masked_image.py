"""Which patches of an image its caption is about, and the error of patches that are rebuilt.

Shapes: b pairs of this rank, n patches of an image, l tokens of a text, p numbers of a patch.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MaskBy = Literal["attentive", "random", "low"]
"""Take the patches that the caption is about most, any, or those that it is about least."""


def caption_scores(
    patches: Float[Tensor, "b n d"], tokens: Float[Tensor, "b l d"], *, words: Bool[Tensor, "b l"]
) -> Float[Tensor, "b n"]:
    """How much each patch resembles the word of the caption that it resembles most; without gradient.

    A caption without words gives its patches random scores.

    Args:
        patches, tokens: unit vectors.
        words: the tokens that are words, not marks of beginning, end or padding.

    Source: arXiv:2401.02137, section 3.3.
    """
    with torch.no_grad():
        similarity = torch.einsum("bnd,bld->bnl", patches, tokens.to(patches.dtype))
        best = similarity.masked_fill(~words[:, None], -torch.inf).amax(2)
        return torch.where(words.any(1, keepdim=True), best, torch.rand_like(best))


def words_of(mask: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """The tokens between the first, which marks the beginning, and the last, which marks the end of text."""
    words = mask.clone()
    words[:, 0] = False
    words[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] = False
    return words


def divide(
    scores: Float[Tensor, "b n"], share: float, *, by: MaskBy
) -> tuple[Int64[Tensor, "b k"], Int64[Tensor, "b h"]]:
    """The places of the patches that stay, and of the h = floor(share * n) that are taken away.

    Places are in ascending order. Of equal scores the lower place counts as the higher score, so that the
    most attentive half and the least attentive half are all patches.
    """
    if by == "random":
        scores = torch.rand_like(scores)
    order = scores.argsort(dim=1, descending=True, stable=True)
    if by == "low":
        order = order.flip(1)
    count = math.floor(share * scores.shape[1] + 1e-9)  # 0.29 * 100 is a little less than 29
    taken, stay = order[:, :count], order[:, count:]
    return stay.sort(dim=1).values, taken.sort(dim=1).values


def brightness_and_contrast(
    pixels: Float[Tensor, "b h p"],
) -> tuple[Float[Tensor, "b h 1"], Float[Tensor, "b h 1"]]:
    """Mean and deviation of each patch, the latter never 0."""
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def patch_error(
    predicted: Float[Tensor, "b h p"], pixels: Float[Tensor, "b h p"], *, normalise: bool
) -> Float[Tensor, " b"]:
    """Mean squared error over the patches of each row.

    Args:
        normalise: compare with pixels of mean 0 and variance 1 in each patch: what is learned is structure,
            not brightness.

    Source: arXiv:2401.02137, section 3.3; normalised pixels: arXiv:2111.06377, section 4.
    """
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    if normalise:
        brightness, contrast = brightness_and_contrast(pixels)
        pixels = (pixels - brightness) / contrast
    return (predicted.to(pixels.dtype) - pixels).square().mean((1, 2))
