"""Positional embeddings of another size: only resized when that was asked for."""

import math

import torch
from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F


def resized_grid(
    positions: Float[Tensor, "1 n d"], *, length: int, num_prefix_tokens: int
) -> Float[Tensor, "1 {length} d"] | None:
    """Positions of a square grid of patches, bicubic; those of the class token and the like stay as they are.

    Returns None where either is no square grid.
    """
    old, new = positions.shape[1] - num_prefix_tokens, length - num_prefix_tokens
    if old < 1 or new < 1 or math.isqrt(old) ** 2 != old or math.isqrt(new) ** 2 != new:
        return None
    side = math.isqrt(new)
    return resample_abs_pos_embed(  # type: ignore[no-any-return]
        positions, new_size=[side, side], num_prefix_tokens=num_prefix_tokens
    )


def resized_row(positions: Float[Tensor, "n d"], *, length: int) -> Float[Tensor, "{length} d"]:
    """Positions of tokens: the first of them for a shorter context, stretched linearly for a longer one.

    Cutting changes nothing for texts that fit. Stretching changes every text, so the tower needs training.
    """
    if length <= len(positions):
        return positions[:length].clone()
    stretched = F.interpolate(positions.T.unsqueeze(0).float(), size=length, mode="linear")
    return stretched[0].T.to(positions.dtype, memory_format=torch.contiguous_format)
