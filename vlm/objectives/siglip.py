"""SigLIP: a decision for every image and text, with a learned temperature and bias."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm.errors import ConfigError
from vlm.losses import sigmoid_loss
from vlm.objectives.contrastive import ContrastiveObjective
from vlm.types import ContrastiveModel


class SigLipObjective(ContrastiveObjective):
    """Whether this text is of this image, for every image and every text.

    Source: arXiv:2303.15343, section 3.2.
    """

    kind = "sigmoid"

    def chance_losses(self, global_batch_size: int) -> Mapping[str, float]:
        # One right text among n for each image, each guessed with probability 1 / n.
        n = global_batch_size // self.num_groups
        return {"itc": math.log(n) + (n - 1) * math.log(n / max(1, n - 1))}

    def contrast(self, model: ContrastiveModel, image: Tensor, text: Tensor, **how: Any) -> Tensor:
        if model.logit_bias is None:
            raise ConfigError("objective=siglip needs model.init_logit_bias, such as -10")
        return sigmoid_loss(
            image, text, logit_scale=model.logit_scale.exp(), logit_bias=model.logit_bias, **how
        )
