"""Losses: pure functions of named tensors. Each returns a value whose mean over ranks is the global loss."""

from vlm.losses.captioning import caption_likelihood, mean_over_tokens
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
from vlm.losses.masked_image import (
    MaskBy,
    brightness_and_contrast,
    caption_scores,
    divide,
    patch_error,
    words_of,
)

__all__ = [
    "IMPLEMENTATIONS",
    "ClassLogits",
    "HardNegatives",
    "Implementation",
    "Kind",
    "LossCost",
    "Margin",
    "MaskBy",
    "brightness_and_contrast",
    "caption_likelihood",
    "caption_scores",
    "choose_implementation",
    "class_cost",
    "class_logits",
    "divide",
    "equal_caption_share",
    "gathered_bytes",
    "grounded_contrast",
    "info_nce",
    "logits_bytes",
    "loss_flops",
    "margin_softmax",
    "mean_over_tokens",
    "mlcd",
    "negatives_of_other_anchors",
    "patch_error",
    "sigmoid_loss",
    "squared_distance",
    "traffic_bytes",
    "words_of",
]
