"""Margin softmax over classes cut into ranks, beside one process that has the whole matrix of logits."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo import run_gloo
from torch import Tensor, nn

from vlm.distributed import Topology, collectives, gather_rows
from vlm.losses import Margin, class_logits, margin_softmax, mlcd
from vlm.models.class_centres import rows_of_rank

CLASSES, SAMPLES, DIM, LABELS = 11, 12, 6, 3
LOSSES = {"softmax": margin_softmax, "mlcd": mlcd}
ARCFACE = Margin(m1=1.0, m2=0.5, m3=0.0, gradient="exact")
COMBINED = Margin(m1=1.2, m2=0.2, m3=0.15, gradient="exact")
NONE = Margin(m1=1.0, m2=0.0, m3=0.0, gradient="exact")


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.randperm(CLASSES, generator=generator)[:LABELS] for _ in range(SAMPLES)])
    labels[1, 2] = labels[5, 1] = -1
    return {
        "x": torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64),
        "centres": torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64),
        "labels": labels,
    }


def tower() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, DIM, dtype=torch.float64)


def reference(case: dict[str, Any]) -> dict[str, Tensor]:
    """Loss and gradients of one process, sample by sample and class by class."""
    rows, net = data(), tower()
    centres = rows["centres"].requires_grad_()
    dims = case["dims"] if case["dims"] is not None else torch.arange(DIM)
    labels = rows["labels"][:, : case["labels"]]
    cosine = (
        F.normalize(net(rows["x"])[:, dims], dim=1, eps=0) @ F.normalize(centres[:, dims], dim=1, eps=0).T
    )
    kept = set(case["kept"]) | set(labels[labels >= 0].tolist())
    losses = []
    for i in range(SAMPLES):
        own = [int(c) for c in labels[i] if c >= 0]
        limit = case["filter_above"] or math.inf
        others = [c for c in sorted(kept) if c not in own and cosine[i, c] <= limit]
        if not own:
            continue
        z_own = [case["scale"] * naive_margin(cosine[i, c], case["margin"]) for c in own]
        z_others = case["scale"] * cosine[i, others]
        if case["loss"] == "softmax":
            losses.append(torch.stack([softmax_term(z, z_others) for z in z_own]).mean())
        else:
            pull = torch.log(1 + sum(torch.exp(-z) for z in z_own))
            losses.append(pull + torch.log(1 + z_others.exp().sum()))
    loss = torch.stack(losses).mean()
    loss.backward()
    return {
        "loss": loss.detach(),
        "centres": centres.grad,
        **{n: p.grad for n, p in net.named_parameters()},
    }


def softmax_term(own: Tensor, others: Tensor) -> Tensor:
    z = torch.cat([own[None], others])
    return F.cross_entropy(z[None], torch.tensor([0]))


def naive_margin(cosine: Tensor, margin: Margin) -> Tensor:
    angle = margin.m1 * torch.acos(cosine) + margin.m2
    turns = math.floor(float(angle.detach()) / math.pi)
    return (-1) ** turns * torch.cos(angle) - 2 * turns - margin.m3


def one_rank(case: dict[str, Any]) -> dict[str, Tensor]:
    """This rank's part: gradients of the tower averaged over ranks, those of the centres put together."""
    topology, rows, net = Topology.current(), data(), tower()
    x, labels = (
        rows[name].chunk(topology.world_size)[topology.rank].contiguous() for name in ("x", "labels")
    )
    labels = gather_rows(labels[:, : case["labels"]].contiguous())
    own = rows_of_rank(CLASSES, topology)
    kept = set(case["kept"]) | set(labels[labels >= 0].tolist())
    classes = torch.tensor([c for c in own if c in kept], dtype=torch.int64)
    centres = rows["centres"].requires_grad_()
    logits = class_logits(
        net(x),
        labels,
        centres=centres[classes],
        classes=classes,
        scale=case["scale"],
        margin=case["margin"],
        filter_above=case["filter_above"],
        dims=case["dims"],
        tile=case["tile"],
    )
    loss = LOSSES[case["loss"]](logits)
    loss.backward()
    result = {"loss": loss.detach(), **{n: p.grad for n, p in net.named_parameters() if p.grad is not None}}
    if topology.world_size > 1:
        for value in result.values():
            torch.distributed.all_reduce(value)
            value /= topology.world_size
    gradient = torch.zeros_like(centres) if centres.grad is None else centres.grad
    if topology.world_size > 1:
        torch.distributed.all_reduce(gradient)
    return {**result, "centres": gradient}


BASE: dict[str, Any] = {
    "loss": "softmax",
    "labels": 1,
    "margin": ARCFACE,
    "scale": 16.0,
    "filter_above": None,
    "dims": None,
    "kept": list(range(CLASSES)),
    "tile": 3,
}
CHANGES: list[dict[str, Any]] = [
    *({"loss": loss, "labels": count} for loss, count in itertools.product(LOSSES, (1, LABELS))),
    {"margin": COMBINED},
    {"margin": NONE, "scale": 1.0},
    {"filter_above": 0.1, "scale": 2.0},
    {"dims": torch.tensor([0, 2, 5])},
    {"kept": [0, 3, 9], "labels": LABELS, "loss": "mlcd"},
    {"kept": [], "labels": LABELS},
    {"tile": 1},
    {"tile": 100},
]
CASES = [BASE | change for change in CHANGES]


def all_cases() -> list[dict[str, Tensor]]:
    return [one_rank(case) for case in CASES]


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(3, marks=pytest.mark.long), 4])
def test_parts_of_ranks_equal_one_process(world_size: int, tmp_path: Path) -> None:
    for results in run_gloo(all_cases, world_size, tmp_path):
        for change, case, found in zip(CHANGES, CASES, results, strict=True):
            expected = reference(case)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(
                    found[name],
                    value,
                    rtol=0,
                    atol=1e-12,
                    msg=lambda m, n=name, c=change: f"{c} {n}: {m}",
                )


def positives_on_rank_0() -> dict[str, Tensor]:
    rows = data()
    rows["labels"] %= rows_of_rank(CLASSES, Topology(rank=0, world_size=4)).stop
    globals()["data"] = lambda: rows
    return {"found": one_rank(BASE), "expected": reference(BASE)}


def test_one_rank_may_own_all_positives(tmp_path: Path) -> None:
    for result in run_gloo(positives_on_rank_0, 4, tmp_path):
        for name, value in result["expected"].items():
            torch.testing.assert_close(result["found"][name], value, rtol=0, atol=1e-12)


def without_the_factor() -> dict[str, Tensor]:
    collectives._OwnPart.backward = staticmethod(lambda ctx, grad: (grad, None))
    return one_rank(BASE)


def test_the_factor_of_averaging_matters(tmp_path: Path) -> None:
    """The usual mistake: gradients of the tower too small by the number of ranks."""
    expected = reference(BASE)
    for found in run_gloo(without_the_factor, 2, tmp_path):
        torch.testing.assert_close(found["weight"] * 2, expected["weight"], rtol=0, atol=1e-12)
        torch.testing.assert_close(found["centres"], expected["centres"], rtol=0, atol=1e-12)


def test_without_margin_it_is_cross_entropy() -> None:
    rows, net = data(), tower()
    labels = rows["labels"][:, 0]
    found = one_rank(BASE | {"margin": NONE})
    cosine = F.normalize(net(rows["x"]), dim=1) @ F.normalize(rows["centres"], dim=1).T
    torch.testing.assert_close(found["loss"], F.cross_entropy(16.0 * cosine, labels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m2", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("m1", [1.0, 1.35])
def test_margin_gradients(m1: float, m2: float) -> None:
    cosine = torch.linspace(-0.99, 0.99, 41, dtype=torch.float64, requires_grad=True)
    exact = Margin(m1=m1, m2=m2, m3=0.1, gradient="exact")
    assert torch.autograd.gradcheck(exact, cosine)
    values = exact(cosine)
    assert (values.diff() > 0).all(), "falls with the angle"
    through = Margin(m1=m1, m2=m2, m3=0.1, gradient="straight_through")
    torch.testing.assert_close(through(cosine), values)
    (slope,) = torch.autograd.grad(through(cosine).sum(), cosine)
    torch.testing.assert_close(slope, torch.ones_like(slope))


def test_exact_gradient_of_arcface_by_hand() -> None:
    theta = torch.tensor([1.2], dtype=torch.float64)
    cosine = theta.cos().requires_grad_()
    (slope,) = torch.autograd.grad(64 * ARCFACE(cosine).sum(), cosine)
    torch.testing.assert_close(slope, 64 * (theta + 0.5).sin() / theta.sin())


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_and_opposite_rows_in_bf16_stay_finite(loss: str, gradient: Any) -> None:
    centres = torch.eye(4, dtype=torch.bfloat16).requires_grad_()
    features = torch.cat([torch.eye(4), -torch.eye(4)]).bfloat16().requires_grad_()
    labels = torch.arange(4).repeat(2)[:, None]
    logits = class_logits(
        features,
        labels,
        centres=centres,
        classes=torch.arange(4),
        scale=64.0,
        margin=Margin(m1=1.0, m2=0.5, m3=0.1, gradient=gradient),
    )
    value = LOSSES[loss](logits)
    assert value.isfinite()
    for grad in torch.autograd.grad(value, (features, centres)):
        assert grad.isfinite().all()


def test_far_classes_neither_overflow_nor_saturate() -> None:
    """A loss of 300 is reported as such: log of a probability that was rounded to 0 would stop at 69."""
    features = torch.tensor([[1.0, 0.0]])
    logits = class_logits(
        features,
        torch.tensor([[1]]),
        centres=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
        classes=torch.arange(2),
        scale=150.0,
        margin=NONE,
    )
    torch.testing.assert_close(margin_softmax(logits), torch.tensor(300.0))
