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
    class_cost,
    gathered_bytes,
    logits_bytes,
    loss_flops,
    traffic_bytes,
)
from vlm.losses.margin_softmax import ClassLogits, Margin, class_logits, margin_softmax, mlcd

__all__ = [
    "IMPLEMENTATIONS",
    "ClassLogits",
    "HardNegatives",
    "Implementation",
    "Kind",
    "LossCost",
    "Margin",
    "choose_implementation",
    "class_cost",
    "class_logits",
    "equal_caption_share",
    "gathered_bytes",
    "info_nce",
    "logits_bytes",
    "loss_flops",
    "margin_softmax",
    "mlcd",
    "sigmoid_loss",
    "traffic_bytes",
]
