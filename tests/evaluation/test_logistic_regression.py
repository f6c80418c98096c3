import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from vlm.evaluation import logistic_regression
from vlm.evaluation.logistic_regression import LogisticRegression


def problem(
    *, rows: int = 60, dim: int = 5, classes: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors in a narrow cone, with directions of very different variance."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(rows) % classes
    means = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    features = means[label] + torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return normalize(1 + features * 3.0 ** -torch.arange(dim), dim=1).to(dtype), label


def objective(
    parameters: torch.Tensor, features: torch.Tensor, label: torch.Tensor, *, l2: float
) -> torch.Tensor:
    """As it is written in the documentation; the last row is the bias."""
    weight, bias = parameters[:-1], parameters[-1]
    return cross_entropy(features @ weight + bias, label) + l2 / 2 * weight.square().sum()


def newton(features: torch.Tensor, label: torch.Tensor, *, classes: int, l2: float) -> torch.Tensor:
    """Slow and exact: Newton steps with the whole Hessian, halved until they descend."""
    parameters = torch.zeros(features.shape[1] + 1, classes, dtype=torch.float64)

    def value(flat: torch.Tensor) -> torch.Tensor:
        return objective(flat.view_as(parameters), features, label, l2=l2)

    flat = parameters.flatten()
    for _ in range(60):
        gradient = torch.func.grad(value)(flat)
        step = torch.linalg.lstsq(torch.func.hessian(value)(flat), gradient, driver="gelsd").solution
        while value(flat - step) > value(flat) and step.norm() > 1e-13:
            step = step / 2
        flat = flat - step
    assert torch.func.grad(value)(flat).abs().max() < 1e-12
    return flat.view_as(parameters)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4, 1e-6])
def test_fit_is_the_optimum_that_newton_finds(l2: float) -> None:
    features, label = problem()
    found = LogisticRegression(features, label, num_classes=3).fit(l2=l2, tolerance=1e-8)
    expected = newton(features, label, classes=3, l2=l2)
    assert found.converged
    torch.testing.assert_close(found.weight, expected[:-1], rtol=1e-4, atol=1e-5)
    shift = found.bias - expected[-1]  # a constant on every bias changes nothing
    torch.testing.assert_close(shift, shift.mean().expand(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4, 1e-6])
def test_the_gradient_of_the_plain_objective_vanishes_at_the_fit(l2: float) -> None:
    features, label = problem()
    found = LogisticRegression(features, label, num_classes=3).fit(l2=l2, tolerance=1e-8)
    parameters = torch.cat([found.weight, found.bias[None]])
    gradient = torch.func.grad(objective)(parameters, features, label, l2=l2)
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("l2", [1e-2, 1e-4, 1e-6, 1e-8])
def test_a_fit_in_single_precision_reaches_the_minimum_of_the_loss(l2: float) -> None:
    features, label = problem(rows=500, dim=16, classes=4, dtype=torch.float32)
    found = LogisticRegression(features, label, num_classes=4).fit(l2=l2)
    exact = LogisticRegression(features.double(), label, num_classes=4).fit(l2=l2, tolerance=1e-8)
    losses = [
        float(objective(torch.cat([fit.weight, fit.bias[None]]), features.double(), label, l2=l2))
        for fit in (found, exact)
    ]
    assert found.converged
    assert 0 <= losses[0] - losses[1] < 1e-6


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    features, label = problem()
    whole = LogisticRegression(features, label, num_classes=3).fit(l2=1e-3, tolerance=1e-8)
    monkeypatch.setattr(logistic_regression, "BLOCK_ENTRIES", 7 * 8)
    parts = LogisticRegression(features, label, num_classes=3).fit(l2=1e-3, tolerance=1e-8)
    torch.testing.assert_close(parts.weight, whole.weight)
    torch.testing.assert_close(parts.logits(features), whole.logits(features))


def test_directions_without_variance_and_absent_classes_do_no_harm() -> None:
    features, label = problem()
    features = torch.cat([features, features[:, :2], torch.ones(60, 1, dtype=torch.float64)], dim=1)
    found = LogisticRegression(features, label, num_classes=5).fit(l2=1e-3)
    assert found.converged
    assert set(found.logits(features).argmax(dim=1).tolist()) <= {0, 1, 2}


def test_a_fit_that_is_cut_short_says_so() -> None:
    features, label = problem()
    assert not LogisticRegression(features, label, num_classes=3).fit(l2=1e-6, max_iterations=2).converged
