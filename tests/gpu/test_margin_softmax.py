"""A step of class centres on a GPU beside one on a CPU in float64."""

import pytest
import torch
from gpus import needs_gpus
from torch import Tensor

from vlm.distributed import Topology
from vlm.losses import Margin, class_logits, margin_softmax, mlcd
from vlm.models import ClassCentres

pytestmark = needs_gpus()
CLASSES, DIM, SAMPLES, LABELS = 1_000, 32, 48, 3
# Of the largest number; a first step of AdamW is the sign of its gradient, however small that is.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


def step(device: torch.device, dtype: torch.dtype, loss: str, classes: Tensor) -> dict[str, Tensor]:
    """Loss, gradient of the features and the centres after a step, back on the CPU in float64."""
    centres = ClassCentres(num_classes=CLASSES, dim=DIM, seed=0, topology=Topology(rank=0, world_size=1))
    for name in ("weight", "exp_avg", "exp_avg_sq"):
        setattr(centres, name, getattr(centres, name).to(dtype))
    centres.to(device)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(SAMPLES, DIM, generator=generator, dtype=torch.float64)
    features = drawn.to(device, dtype).requires_grad_()
    logits = class_logits(
        features,
        labels().to(device),
        centres=centres.take(classes.to(device)),
        classes=classes.to(device),
        scale=16.0,
        margin=Margin(m1=1.0, m2=0.3, m3=0.1, gradient="exact"),
        filter_above=0.4,
        dims=torch.arange(0, DIM, 2, device=device),
    )
    value = {"softmax": margin_softmax, "mlcd": mlcd}[loss](logits)
    value.backward()
    centres.step(lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    assert features.grad is not None
    found = {"loss": value.detach(), "features": features.grad, "centres": centres.weight}
    return {name: tensor.double().cpu() for name, tensor in found.items()}


def labels() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    drawn = torch.stack([torch.randperm(CLASSES, generator=generator)[:LABELS] for _ in range(SAMPLES)])
    drawn[3, 1:] = -1
    return drawn


def sampled(device: torch.device) -> Tensor:
    """Every own class, and others up to a tenth."""
    centres = ClassCentres(num_classes=CLASSES, dim=DIM, seed=0, topology=Topology(rank=0, world_size=1))
    centres.to(device)
    return centres.sample(labels().to(device), rate=0.3).cpu()


def check_step(device: torch.device, dtype: torch.dtype, loss: str) -> None:
    classes = sampled(device)
    own = labels()
    assert len(classes) == 300
    assert set(own[own >= 0].tolist()) <= set(classes.tolist())
    expected = step(torch.device("cpu"), torch.float64, loss, classes)
    for name, value in step(device, dtype, loss, classes).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name], rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("loss", ["softmax", "mlcd"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_step_is_that_of_a_cpu(dtype: torch.dtype, loss: str) -> None:
    check_step(torch.device("cuda"), dtype, loss)
