"""Contrastive losses as their papers write them: one logit at a time, one process, all pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def is_negative(i: int, j: int, ids: Tensor | None) -> bool:
    return i != j and (ids is None or bool(ids[i] != ids[j]))


def hard_logits(i: int, image: Tensor, hard: Tensor, present: Tensor, scope: str) -> list[Tensor]:
    """Cosines of image i with the hard negatives that it is compared with."""
    pairs = range(len(image)) if scope == "all" else [i]
    return [image[i] @ hard[j, k] for j in pairs for k in range(hard.shape[1]) if present[j, k]]


def softmax_reference(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    ids: Tensor | None = None,
    hard: tuple[Tensor, Tensor, str] | None = None,
) -> Tensor:
    total = image.new_zeros(())
    for i in range(len(image)):
        others = [j for j in range(len(image)) if is_negative(i, j, ids)]
        texts = [image[i] @ text[j] for j in [i, *others]]
        texts += hard_logits(i, image, *hard) if hard else []
        images = [text[i] @ image[j] for j in [i, *others]]
        for cosines in (texts, images):
            total = total - (scale.squeeze() * torch.stack(cosines)).log_softmax(0)[0] / 2
    return total / len(image)


def sigmoid_reference(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    ids: Tensor | None = None,
    hard: tuple[Tensor, Tensor, str] | None = None,
) -> Tensor:
    total = image.new_zeros(())
    for i in range(len(image)):
        total = total - F.logsigmoid(scale.squeeze() * (image[i] @ text[i]) + bias.squeeze())
        wrong = [image[i] @ text[j] for j in range(len(image)) if is_negative(i, j, ids)]
        wrong += hard_logits(i, image, *hard) if hard else []
        for cosine in wrong:
            total = total - F.logsigmoid(-(scale.squeeze() * cosine + bias.squeeze()))
    return total / len(image)
