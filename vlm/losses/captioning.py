"""Captions: the likelihood of each, row by row, and the mean over the tokens of all ranks."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vlm.distributed import mean_over_ranks


def caption_likelihood(
    logits: Float[Tensor, "b l v"], text: Int64[Tensor, "b l"], *, mask: Bool[Tensor, "b l"]
) -> tuple[Float[Tensor, " b"], Int64[Tensor, " b"]]:
    """What each caption costs in nats, summed over its tokens, and how many these are.

    The first token is given; each other, the end of text among them, is predicted from those before it.

    Args:
        logits: of the token after each.
        mask: True up to and including the end of text.

    Source: arXiv:2205.01917, equation 3.
    """
    there = mask[:, 1:]
    # -100 is torch's name for a place that costs nothing and has no gradient.
    target = text[:, 1:].masked_fill(~there, -100)
    # An engine may have cast the decoder.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cost = F.cross_entropy(logits[:, :-1].transpose(1, 2), target, reduction="none")
    return cost.sum(1), there.sum(1)


def mean_over_tokens(cost: Float[Tensor, " b"], tokens: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
    """The part of this rank in the mean cost of a token over all ranks: the mean of the parts is that.

    Captions of other lengths would else count more on a rank where they are few.
    """
    everywhere = mean_over_ranks(tokens.sum().to(torch.float64))
    return cost.sum() / everywhere.to(cost.dtype).clamp(min=1)
