import pytest
import torch
from torch import nn

from vlm.errors import ConfigError
from vlm.training import AdamW

GOOD = {
    "lr": 0.1,
    "betas": (0.9, 0.98),
    "eps": 1e-6,
    "weight_decay": 0.2,
    "image_layer_decay": 1.0,
    "text_layer_decay": 1.0,
}


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model.register_parameter("logit_scale", nn.Parameter(torch.zeros(1)))
    optimizer = AdamW(**{**GOOD, "weight_decay": 0.5}).build(dict(model.named_parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert decayed == {"0.weight"}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer.lr", {"lr": 0.0}),
        ("optimizer.betas", {"betas": (0.9, 1.0)}),
        ("optimizer.weight_decay", {"weight_decay": -1.0}),
    ],
)
def test_a_bad_number_is_refused_by_key(key: str, values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=key):
        AdamW(**{**GOOD, **values})
