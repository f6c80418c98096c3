"""Losses: pure functions of named tensors. Each returns a value whose mean over ranks is the global loss."""

from vlm.losses.contrastive import (
    IMPLEMENTATIONS,
    HardNegatives,
    Implementation,
    equal_caption_share,
    info_nce,
    sigmoid_loss,
)
from vlm.losses.cost import choose_implementation, logits_bytes

__all__ = [
    "IMPLEMENTATIONS",
    "HardNegatives",
    "Implementation",
    "choose_implementation",
    "equal_caption_share",
    "info_nce",
    "logits_bytes",
    "sigmoid_loss",
]
