"""Losses compute in the precision of their scale, also where somebody calls them under autocast."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.losses import (
    IMPLEMENTATIONS,
    HardNegatives,
    Margin,
    class_logits,
    info_nce,
    margin_softmax,
    sigmoid_loss,
)

PAIRS, HARD, DIM = 32, 2, 48


def gradients(kind: str, *, forward: Any, backward: Any, **how: Any) -> list[Tensor]:
    """The loss and its gradients of pairs that a trained model has nearly told apart."""
    generator = torch.Generator().manual_seed(0)
    image, noise = (F.normalize(torch.randn(PAIRS, DIM, generator=generator), dim=1) for _ in range(2))
    text = F.normalize(image + 0.5 * noise, dim=1)
    hard = F.normalize(text[:, None] + 0.5 * torch.randn(PAIRS, HARD, DIM, generator=generator), dim=2)
    leaves = [image, text, hard, torch.tensor([50.0]), torch.tensor([-10.0])]
    for leaf in leaves:
        leaf.requires_grad_()
    image, text, hard, scale, bias = leaves
    negatives = HardNegatives(
        text=hard, present=torch.ones(PAIRS, HARD, dtype=torch.bool), scope=how.pop("scope")
    )
    how |= {"logit_scale": scale, "negatives": negatives, "tile": 20}
    with forward:
        loss = (
            info_nce(image, text, **how)
            if kind == "softmax"
            else sigmoid_loss(image, text, logit_bias=bias, **how)
        )
    with backward:
        loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def class_gradients(*, forward: Any, backward: Any) -> list[Tensor]:
    """The loss and its gradients of samples that are near their own class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(PAIRS, DIM, generator=generator)
    features = (centres + torch.randn(PAIRS, DIM, generator=generator)).requires_grad_()
    centres.requires_grad_()
    with forward:
        logits = class_logits(
            features,
            torch.arange(PAIRS)[:, None],
            centres=centres,
            classes=torch.arange(PAIRS),
            scale=32.0,
            margin=Margin(m1=1.0, m2=0.3, m3=0.1, gradient="exact"),
            tile=20,
        )
        loss = margin_softmax(logits)
    with backward:
        loss.backward()
    assert features.grad is not None
    assert centres.grad is not None
    return [loss.detach(), features.grad, centres.grad]


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(("forward", "backward"), [(nullcontext, half), (half, nullcontext), (half, half)])
def test_autocast_changes_no_gradient_of_classes(forward: Any, backward: Any) -> None:
    expected = class_gradients(forward=nullcontext(), backward=nullcontext())
    for value, other in zip(class_gradients(forward=forward(), backward=backward()), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scope", ["own", "all"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_changes_no_gradient(implementation: str, kind: str, scope: str) -> None:
    how = {"implementation": implementation, "scope": scope}
    expected = gradients(kind, forward=nullcontext(), backward=nullcontext(), **how)
    assert len(expected) == (5 if kind == "softmax" else 6)

    for forward, backward in ((nullcontext(), half()), (half(), nullcontext()), (half(), half())):
        found = gradients(kind, forward=forward, backward=backward, **how)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-6, atol=0)
