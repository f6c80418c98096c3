import math

import pytest
import torch
from tiny_model import objective_of
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.losses import choose_implementation


class OnlyScale(nn.Module):
    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([log_scale]))
        self.logit_bias = None

    def encode_image(self, image: Tensor) -> Tensor:
        return image

    def encode_text(self, text: Tensor) -> Tensor:
        return text


def test_scale_is_clamped_after_a_step() -> None:
    model = OnlyScale(9.0)
    objective_of().after_step(model, 1)
    assert model.logit_scale.item() == pytest.approx(math.log(100.0))


def test_a_scale_below_one_is_refused_by_key() -> None:
    with pytest.raises(ConfigError, match=r"objective\.max_logit_scale"):
        objective_of(max_logit_scale=0.5)


def test_auto_takes_the_tiles_where_logits_would_be_large() -> None:
    assert choose_implementation(pairs=256, all_pairs=1024) == "local_rows"
    assert choose_implementation(pairs=1024, all_pairs=65536) == "tiled"
