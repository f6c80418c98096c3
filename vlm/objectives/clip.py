"""CLIP: symmetric InfoNCE with a learned temperature."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch

from vlm.errors import ConfigError
from vlm.losses import info_nce
from vlm.objectives.objective import Encoded, Objective
from vlm.types import Batch, ContrastiveModel, StepOutput


class ClipObjective(Objective):
    """Image and text of a pair attract, every other pair of the global batch repels.

    Args:
        max_logit_scale: the multiplier on cosine similarity is clamped to it after each step.
        mask_equal_captions: pairs with the same caption are no negatives of each other.

    Source: arXiv:2103.00020, section 2.3 and 2.5.
    """

    required_keys: ClassVar[frozenset[str]] = frozenset({"image", "text", "caption_id"})

    def __init__(self, *, max_logit_scale: float, mask_equal_captions: bool) -> None:
        super().__init__()
        if not max_logit_scale >= 1:
            raise ConfigError(
                f"objective.max_logit_scale={max_logit_scale} must be at least 1 (CLIP uses 100)"
            )
        self.max_logit_scale = max_logit_scale
        self.mask_equal_captions = mask_equal_captions

    def chance_losses(self, global_batch_size: int) -> Mapping[str, float]:
        return {"itc": math.log(global_batch_size)}

    def encode(self, model: ContrastiveModel, batch: Batch) -> Encoded:
        return {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"]),
            "caption_id": batch["caption_id"],
        }

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        result = info_nce(
            encoded["image"],
            encoded["text"],
            logit_scale=model.logit_scale.exp(),
            caption_id=encoded["caption_id"] if self.mask_equal_captions else None,
        )
        metrics = {"logit_scale": model.logit_scale.detach().exp().squeeze()}
        if self.mask_equal_captions:
            metrics["equal_captions"] = result.masked_share
        return StepOutput(terms={"itc": result.loss}, weights={"itc": 1.0}, metrics=metrics)

    @torch.no_grad()
    def after_step(self, model: ContrastiveModel, step: int) -> None:
        model.logit_scale.clamp_(max=math.log(self.max_logit_scale))
