"""CLIP: symmetric InfoNCE with a learned temperature."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm.errors import ConfigError
from vlm.losses import info_nce
from vlm.objectives.contrastive import ContrastiveObjective
from vlm.types import ContrastiveModel


class ClipObjective(ContrastiveObjective):
    """Each image picks its text among all, and each text its image.

    Source: arXiv:2103.00020, section 2.3 and 2.5.
    """

    kind = "softmax"

    def chance_losses(self, global_batch_size: int) -> Mapping[str, float]:
        return {"itc": math.log(global_batch_size // self.num_groups)}

    def contrast(self, model: ContrastiveModel, image: Tensor, text: Tensor, **how: Any) -> Tensor:
        if model.logit_bias is not None:
            raise ConfigError("this objective has no use for model.init_logit_bias; set it to null")
        return info_nce(image, text, logit_scale=model.logit_scale.exp(), **how)
