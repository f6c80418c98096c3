"""Losses: pure functions of named tensors. Each returns a value whose mean over ranks is the global loss."""

from vlm.losses.contrastive import (
    IMPLEMENTATIONS,
    HardNegatives,
    Implementation,
    equal_caption_share,
    info_nce,
    sigmoid_loss,
)
from vlm.losses.cost import (
    Kind,
    LossCost,
    choose_implementation,
    gathered_bytes,
    logits_bytes,
    loss_flops,
    traffic_bytes,
)

__all__ = [
    "IMPLEMENTATIONS",
    "HardNegatives",
    "Implementation",
    "Kind",
    "LossCost",
    "choose_implementation",
    "equal_caption_share",
    "gathered_bytes",
    "info_nce",
    "logits_bytes",
    "loss_flops",
    "sigmoid_loss",
    "traffic_bytes",
]
