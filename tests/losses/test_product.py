"""Vectors in bfloat16, multiplied as a GPU does it, which a CPU pretends here."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.losses import IMPLEMENTATIONS, info_nce, product, sigmoid_loss

KINDS = ("softmax", "sigmoid")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shapes of products of halves into float32, which a GPU has, as they are asked for."""
    asked = []

    def into_single(a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        asked.append((a.shape, b.shape))
        return a.float() @ b.float()

    monkeypatch.setattr(product, "_multiplies_halves", lambda x: True)
    monkeypatch.setattr(product, "_into_single", into_single)
    return asked


def pairs_known_well() -> list[Tensor]:
    """Vectors in bfloat16, most pairs found with a probability of 0.99 and more; a scale and a bias."""
    torch.manual_seed(0)
    text = F.normalize(torch.randn(48, 64), dim=1)
    image = F.normalize(text + 0.05 * torch.randn(48, 64), dim=1)
    return [image.bfloat16(), text.bfloat16(), torch.tensor([12.0]), torch.tensor([-6.0])]


def loss_and_gradients(kind: str, values: list[Tensor], implementation: str) -> list[Tensor]:
    image, text, scale, bias = leaves = [value.detach().clone().requires_grad_() for value in values]
    how: dict[str, Any] = {"logit_scale": scale, "implementation": implementation, "tile": 20}
    if kind == "softmax":
        loss = info_nce(image, text, **how)
    else:
        loss = sigmoid_loss(image, text, logit_bias=bias, **how)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_halves_lose_nothing_but_the_rounding_of_the_result(
    implementation: str, kind: str, products: list[Any]
) -> None:
    """Also of pairs that are known well, whose gradient is the small difference of two large ones."""
    values = pairs_known_well()
    found = loss_and_gradients(kind, values, implementation)
    expected = loss_and_gradients(kind, [value.double() for value in values], "dense")
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=0)
    for vectors, exact in zip(found[1:3], expected[1:3], strict=True):
        assert vectors.dtype == torch.bfloat16
        assert ((vectors - exact).norm(dim=1) < 2**-8 * exact.norm(dim=1)).all()
    for number, exact in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(number.double(), exact, rtol=2**-8, atol=0)
    side = 20 if implementation == "tiled" else 48
    assert products[0] == ((side, 64), (64, side))


def test_single_precision_is_never_rounded_to_halves(products: list[Any]) -> None:
    for implementation in IMPLEMENTATIONS:
        loss_and_gradients("softmax", [value.float() for value in pairs_known_well()], implementation)
    assert not products
