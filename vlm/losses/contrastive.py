"""Contrastive losses over the rows of every rank."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vlm.distributed import Topology, gather_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoNce:
    """What `info_nce` returns."""

    loss: Float[Tensor, ""]
    """This rank's share; its mean over ranks is the global loss."""
    masked_share: Float[Tensor, ""]
    """Detached; the share of this rank's negatives that were left out as equal to the positive."""


def info_nce(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    *,
    logit_scale: Float[Tensor, "1"],
    caption_id: Int64[Tensor, " b"] | None = None,
) -> InfoNce:
    """Symmetric InfoNCE of this rank's rows against the rows of all ranks.

    Each rank scores its own rows only, b x n logits in each direction, and gathers the other side with
    gradients. The mean over ranks is the global loss, so data-parallel averaging needs no rescaling.

    Args:
        image, text: unit vectors, row i of both belongs to pair i.
        logit_scale: multiplier on cosine similarity, already exponentiated.
        caption_id: pairs with equal ids are no negatives of each other; None means every other pair is one.

    Source: arXiv:2103.00020, figure 3.
    """
    rows = image.shape[0]
    first = Topology.current().rank * rows
    target = torch.arange(first, first + rows, device=image.device)
    all_image, all_text = gather_rows(image), gather_rows(text)
    image_logits = logit_scale * image @ all_text.T
    text_logits = logit_scale * text @ all_image.T
    masked = image.new_zeros(())
    if caption_id is not None:
        same = _equal_to_another(caption_id, gather_rows(caption_id), target)
        image_logits = image_logits.masked_fill(same, -torch.inf)
        text_logits = text_logits.masked_fill(same, -torch.inf)
        masked = same.sum() / max(1, same.numel() - rows)
    loss = (F.cross_entropy(image_logits, target) + F.cross_entropy(text_logits, target)) / 2
    return InfoNce(loss=loss, masked_share=masked.to(loss.dtype))


def _equal_to_another(
    own: Int64[Tensor, " b"], everyone: Int64[Tensor, " n"], target: Int64[Tensor, " b"]
) -> Bool[Tensor, "b n"]:
    same = own[:, None] == everyone[None, :]
    same[torch.arange(len(own), device=own.device), target] = False
    return same
