"""Losses on a GPU beside the dense one of a CPU in float64, and what they take there."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpus import needs_gpus
from torch import Tensor

from vlm.losses import IMPLEMENTATIONS, HardNegatives, info_nce, logits_bytes, product, sigmoid_loss

pytestmark = needs_gpus()
KINDS = ("softmax", "sigmoid")
PAIRS, HARD, DIM = 192, 3, 64
# Of the loss, in which logits of 14 cancel out, and of each row of its gradients, in which probabilities near
# 1 do; those of vectors in bfloat16 are rounded to 8 bits in the end.
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (2e-6, 2e-3), torch.bfloat16: (2e-6, 2**-7)}


def pairs_known_well(dtype: torch.dtype) -> dict[str, Tensor]:
    """Vectors most of whose pairs are found with a probability above 0.9, so that their gradients are small
    differences of large numbers; rounded to `dtype`, given in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)

    text = F.normalize(draw(PAIRS), dim=-1)
    image = F.normalize(text + 0.05 * draw(PAIRS), dim=-1)
    hard = F.normalize(text[:, None] + 0.3 * draw(PAIRS, HARD), dim=-1)
    vectors = {"image": image, "text": text, "hard": hard}
    return {name: value.to(dtype).double() for name, value in vectors.items()}


def loss_and_gradients(
    kind: str, values: dict[str, Tensor], *, device: torch.device, dtype: torch.dtype, scope: Any, **how: Any
) -> dict[str, Tensor]:
    """On a device, back on the CPU in float64."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {name: value.to(device, dtype, copy=True).requires_grad_() for name, value in values.items()}
    scale, bias = (torch.tensor([x], device=device, dtype=sums, requires_grad=True) for x in (14.0, -7.0))
    if scope is not None:
        present = (torch.arange(PAIRS * HARD, device=device) % 5 > 0).view(PAIRS, HARD)
        how["negatives"] = HardNegatives(text=leaves["hard"], present=present, scope=scope)
    how["caption_id"] = torch.arange(PAIRS, device=device) // 2
    if kind == "softmax":
        loss = info_nce(leaves["image"], leaves["text"], logit_scale=scale, **how)
    else:
        loss = sigmoid_loss(leaves["image"], leaves["text"], logit_scale=scale, logit_bias=bias, **how)
    loss.backward()
    gradients = {"scale": scale.grad, "bias": bias.grad, **{n: leaf.grad for n, leaf in leaves.items()}}
    found = {"loss": loss.detach(), **{n: value for n, value in gradients.items() if value is not None}}
    return {name: value.double().cpu() for name, value in found.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Row by row: the rows of pairs that are known well are the smallest, and not to be lost among others."""
    of_loss, of_gradients = TOLERANCE[dtype]
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0, atol=of_loss)
    for name in found.keys() - {"loss"}:
        apart = (found[name] - expected[name]).view(-1, expected[name].shape[-1]).norm(dim=-1)
        size = expected[name].view(-1, expected[name].shape[-1]).norm(dim=-1)
        assert (apart <= of_gradients * size + 1e-12).all(), (name, float((apart / size).max()))


def check_losses(device: torch.device, dtype: torch.dtype, kind: str) -> None:
    values = pairs_known_well(dtype)
    for implementation, scope in itertools.product(IMPLEMENTATIONS, (None, "own", "all")):
        here = {"device": torch.device("cpu"), "dtype": torch.float64, "scope": scope}
        expected = loss_and_gradients(kind, values, implementation="dense", **here)
        there = {"device": device, "dtype": dtype, "scope": scope, "tile": 50}
        assert_equal(
            loss_and_gradients(kind, values, implementation=implementation, **there), expected, dtype
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_losses_and_gradients_are_those_of_a_cpu_in_float64(dtype: torch.dtype, kind: str) -> None:
    check_losses(torch.device("cuda"), dtype, kind)


def test_products_of_halves_are_as_exact_as_those_of_singles() -> None:
    a, b = (torch.randn(512, 256).bfloat16().cuda() for _ in range(2))
    found = product.product(a.float(), b.float(), scale=torch.ones(1, device="cuda"), half=True)
    exact = a.double() @ b.double().T
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logits_take_the_memory_of_the_formula(implementation: Any, kind: str, dtype: torch.dtype) -> None:
    """Beside them up to 12 matrices of vectors: in float32, gradients, products of pairs."""
    rows, dim = 16384, 512
    formula = logits_bytes(implementation, pairs=rows, all_pairs=rows)
    vectors = 12 * 4 * rows * dim
    if torch.cuda.mem_get_info()[0] < 2 * formula + 2 * vectors:
        pytest.skip(f"{2 * (formula + vectors) / 2**30:.0f} GiB of GPU memory are not free")
    peak = peak_bytes(kind, rows, dim, dtype, implementation)
    assert peak <= formula + vectors, (peak / 2**20, formula / 2**20)
    assert peak >= formula / 2


def peak_bytes(kind: str, rows: int, dim: int, dtype: torch.dtype, implementation: Any) -> int:
    image, text = (F.normalize(torch.randn(rows, dim, device="cuda"), dim=1).to(dtype) for _ in range(2))
    image.requires_grad_()
    text.requires_grad_()
    scale, bias = (torch.tensor([x], device="cuda", requires_grad=True) for x in (14.0, -7.0))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    if kind == "softmax":
        info_nce(image, text, logit_scale=scale, implementation=implementation).backward()
    else:
        loss = sigmoid_loss(image, text, logit_scale=scale, logit_bias=bias, implementation=implementation)
        loss.backward()
    return torch.cuda.max_memory_allocated() - before
