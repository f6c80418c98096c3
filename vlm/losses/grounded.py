"""Contrast of an anchor with its own hard negatives, and distance from a teacher: rows of one rank alone.

Shapes: b pairs of this rank, k hard negatives of a pair, d dimensions. All vectors are unit vectors. Every
rank has the same number of rows, so that the mean over ranks is the mean over all rows.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlm.distributed import Group, gather_rows


def grounded_contrast(
    anchor: Float[Tensor, "b d"],
    positive: Float[Tensor, "b d"],
    negatives: Float[Tensor, "b k d"],
    *,
    present: Bool[Tensor, "b k"],
    scale: Float[Tensor, "1"] | float,
) -> Float[Tensor, ""]:
    """Cross-entropy of picking the positive among it and the anchor's own negatives; 0 where it has none.

    Args:
        present: False where an anchor has fewer than k.
        scale: multiplier on cosine similarity.

    Source: arXiv:2504.16801, image-grounded and text-grounded contrast.
    """
    right = scale * (anchor * positive).sum(1, keepdim=True)
    wrong = (scale * torch.einsum("bd,bkd->bk", anchor, negatives)).masked_fill(~present, -torch.inf)
    return (torch.cat([right, wrong], dim=1).logsumexp(1) - right.squeeze(1)).mean()


def squared_distance(
    student: Float[Tensor, "b *k d"],
    teacher: Float[Tensor, "b *k d"],
    *,
    present: Bool[Tensor, "b k"] | None = None,
) -> Float[Tensor, ""]:
    """Squared distance of vectors from their teacher's, summed over those of a row, mean over rows.

    The paper sums over the rows too, so that the weight of the term grows with the batch.

    Args:
        present: False for vectors that do not count, where a row has k of them.

    Source: arXiv:2504.16801, self-distillation.
    """
    distance = (student - teacher).square().sum(-1)
    if present is not None:
        distance = distance * present
    return distance.sum() / len(student)


def negatives_of_other_anchors(
    negatives: Float[Tensor, "b k d"], present: Bool[Tensor, "b k"], *, group: Group | None = None
) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b k"]]:
    """The negatives that DeGLA's released code gives each text: nearly all of them those of other texts.

    It lays the negatives of all n texts out text after text, and then takes rows i, i + n, i + 2n, … for text
    i, as if they were laid out rank after rank of negative. Published figures may rest on it.
    """
    group = group or Group.everyone()
    everyone, there = gather_rows(negatives.flatten(0, 1), group), gather_rows(present.flatten(), group)
    own, k = negatives.shape[:2]
    total = own * group.size
    rows = torch.arange(own, device=negatives.device) + group.rank * own
    places = rows[:, None] + total * torch.arange(k, device=negatives.device)
    return everyone[places], there[places]
