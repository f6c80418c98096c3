"""Multinomial logistic regression with an l2 penalty, fitted to its optimum."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BLOCK_ENTRIES = 1 << 20
"""Features and logits of the rows that are worked on at once: they stay near the processor between the two
products of a gradient, and memory does not grow with rows × classes."""
MAX_ITERATIONS = 1000
HISTORY = 20
TOLERANCE = 1e-4
"""Largest entry of the gradient where a fit ends, in the coordinates that the fit uses. Half its squared norm
is about what the loss is above its minimum; rounding in single precision is about a tenth of this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearClassifier:
    """Logits `features @ weight + bias`."""

    weight: Float[Tensor, "d c"]
    """Double precision on the CPU, as is the bias."""
    bias: Float[Tensor, " c"]
    converged: bool
    """Whether the gradient came below the tolerance within the iterations that were allowed."""

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """In double precision, rounded to single: equal rows get equal logits."""
        blocks = _blocks(len(features), width=max(self.weight.shape))
        return torch.cat([(features[rows].double() @ self.weight + self.bias).float() for rows in blocks])


class LogisticRegression:
    """Fits the same rows with any weight of the penalty.

    The objective is mean cross-entropy + l2/2 · |weight|², in nats; the bias is free. Weights of real
    features are badly conditioned where the penalty is weak, so L-BFGS works in other coordinates: on the
    principal axes of the centred features, each divided by the root of the curvature that the objective has
    at weight zero, Λ/c + l2 with the variances Λ. That changes the road, not the optimum.

    Products of features and weights are computed in the dtype of the features; weights, sums of the loss and
    the optimizer's state are in double precision. No value is drawn at random.
    """

    def __init__(
        self, features: Float[Tensor, "n d"], label: Int64[Tensor, " n"], *, num_classes: int
    ) -> None:
        self.label = label
        self.num_classes = num_classes
        self.mean = features.mean(dim=0, dtype=torch.float64)
        self._blocks = _blocks(len(features), width=features.shape[1] + num_classes)
        self.variance, self.axes = self._principal(features)
        axes, centre = self.axes.to(features.dtype), self.mean.to(features.dtype)
        self.features = torch.cat([(features[rows] - centre) @ axes for rows in self._blocks])

    def _principal(self, features: Tensor) -> tuple[Tensor, Tensor]:
        covariance = torch.zeros(2 * features.shape[1:], dtype=torch.float64, device=features.device)
        for rows in self._blocks:
            centred = features[rows].double() - self.mean
            covariance += centred.T @ centred
        variance, axes = torch.linalg.eigh(covariance / len(features))
        return variance.clamp(min=0), axes

    def fit(
        self, *, l2: float, max_iterations: int = MAX_ITERATIONS, tolerance: float = TOLERANCE
    ) -> LinearClassifier:
        """The classifier at the optimum, by L-BFGS from weight zero."""
        scale = (self.variance / self.num_classes + l2).rsqrt()[:, None]
        bias_scale = self.num_classes**0.5
        point = torch.zeros(
            len(scale) + 1, self.num_classes, dtype=torch.float64, device=self.features.device
        )

        def objective() -> Tensor:
            weight = scale * point[:-1]
            loss, weight_gradient, bias_gradient = self._cross_entropy(weight, bias_scale * point[-1])
            point.grad = torch.cat(
                [scale * (weight_gradient + l2 * weight), bias_scale * bias_gradient[None]]
            )
            return loss + l2 / 2 * weight.square().sum()

        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=tolerance**2 / 100,  # of the loss, which moves with the square of the gradient
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(objective)  # type: ignore[no-untyped-call]
        assert point.grad is not None
        weight = self.axes @ (scale * point[:-1])
        return LinearClassifier(
            weight=weight.cpu(),
            bias=(bias_scale * point[-1] - self.mean @ weight).cpu(),
            converged=bool(point.grad.abs().max() <= tolerance),
        )

    def _cross_entropy(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean over all rows, and its gradients."""
        dtype = self.features.dtype
        used_weight, used_bias = weight.to(dtype), bias.to(dtype)
        loss = torch.zeros((), dtype=torch.float64, device=weight.device)
        weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in self._blocks:
            features, label = self.features[rows], self.label[rows]
            log_probability = torch.addmm(used_bias, features, used_weight).log_softmax(dim=1)
            loss -= log_probability.gather(1, label[:, None]).sum(dtype=torch.float64)
            residual = log_probability.exp_()
            residual[torch.arange(len(label), device=label.device), label] -= 1
            weight_gradient += features.T @ residual
            bias_gradient += residual.sum(dim=0)
        count = len(self.label)
        return loss / count, weight_gradient / count, bias_gradient / count


def _blocks(num_rows: int, *, width: int) -> list[slice]:
    step = max(1, BLOCK_ENTRIES // width)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
