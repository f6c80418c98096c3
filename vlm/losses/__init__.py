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
from vlm.losses.grounded import grounded_contrast, negatives_of_other_anchors, squared_distance
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
    "grounded_contrast",
    "info_nce",
    "logits_bytes",
    "loss_flops",
    "margin_softmax",
    "mlcd",
    "negatives_of_other_anchors",
    "sigmoid_loss",
    "squared_distance",
    "traffic_bytes",
]
