import math

import pytest
import torch
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.objectives import ClipObjective


class OnlyScale(nn.Module):
    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([log_scale]))

    def encode_image(self, image: Tensor) -> Tensor:
        return image

    def encode_text(self, text: Tensor) -> Tensor:
        return text


def test_scale_is_clamped_after_a_step() -> None:
    model = OnlyScale(9.0)
    ClipObjective(max_logit_scale=100.0, mask_equal_captions=False).after_step(model, 1)
    assert model.logit_scale.item() == pytest.approx(math.log(100.0))


def test_a_scale_below_one_is_refused_by_key() -> None:
    with pytest.raises(ConfigError, match=r"objective\.max_logit_scale"):
        ClipObjective(max_logit_scale=0.5, mask_equal_captions=False)
