"""Linear probe: a logistic regression on frozen features, its penalty chosen on pictures kept for that."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import Result, parts, spread
from vlm.evaluation.labelled import (
    LabelledFeatures,
    TrainTest,
    class_outcomes,
    is_right,
    mean_per_class_recall,
    most_confused,
)
from vlm.evaluation.logistic_regression import LinearClassifier, LogisticRegression
from vlm.evaluation.over_ranks import over_ranks
from vlm.inference import Embedder, Pictures

REFINEMENTS = 3
"""How often the sweep looks between the best value so far and its neighbours."""
NUM_EXAMPLES = 12
NUM_GUESSES = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a weight of the penalty gets on the validation pictures."""

    l2: float
    acc1: float
    cross_entropy: float


class LinearProbe:
    """Accuracy of multinomial logistic regression on the unit vectors of pictures.

    The objective is mean cross-entropy + l2/2 · |weight|², the bias is free. Each value of `l2` is fitted to
    the training pictures without those kept for validation; then the places halfway, in logarithms, to the
    neighbours of the best value are, three times. The value with the highest validation accuracy, of equals
    the one with the lower cross-entropy, is fitted again to all training pictures.

    Args:
        train, test: the two sets.
        label: field of a sample that holds its class, such as `cls`.
        l2: values of the sweep; a single one is used as it is.
        validation_share: of each class, kept for the sweep; at least one picture, never all.
        seed: draws the pictures that are kept.

    Source: arXiv:2103.00020, appendix A.3; there the penalty is on the sum over pictures, λ = l2 · pictures.

    Raises:
        ConfigError: a value of `l2` or `validation_share` is out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        train: Pictures,
        test: Pictures,
        *,
        label: str,
        l2: Sequence[float],
        validation_share: float,
        seed: int,
    ) -> None:
        if not l2 or not all(0 < value < math.inf for value in l2):
            raise ConfigError(f"l2={list(l2)} has to be a list of numbers above 0")
        if not 0 < validation_share < 1:
            raise ConfigError(f"validation_share={validation_share} has to lie between 0 and 1")
        self.data = TrainTest(train, test, label)
        self.l2 = sorted(set(map(float, l2)))
        self.validation_share = validation_share
        self.seed = seed

    def check(self) -> None:
        self.data.check()

    def __call__(self, embedder: Embedder) -> Result:
        data = self.data.read(embedder)
        refuse_nan(data.train, self.data.train)
        trials = self._sweep(data, embedder) if len(self.l2) > 1 else []
        l2 = best_of(trials).l2 if trials else self.l2[0]
        (classifier,) = over_ranks(
            lambda value: _regression(data.train, data.train_label, data, embedder).fit(l2=value),
            [l2],
            embedder,
            what="linear probe",
        )
        if embedder.topology.is_main:
            _warn(trials, l2, classifier)
        return self._result(data, classifier, trials, l2)

    def _sweep(self, data: LabelledFeatures, embedder: Embedder) -> list[Trial]:
        kept = validation_rows(data.train_label, share=self.validation_share, seed=self.seed)
        if not bool(kept.any()):
            raise DataError(
                f"no class of train={self.data.train} has two pictures, so that one could be kept for "
                "validation; add pictures to `train`, or in a suite give `l2` a single value"
            )
        regression = _regression(data.train[~kept], data.train_label[~kept], data, embedder)

        def trial(l2: float) -> Trial:
            logits = regression.fit(l2=l2).logits(data.train[kept])
            return _trial(logits, data.train_label[kept], l2=l2)

        trials = over_ranks(trial, self.l2, embedder, what="linear probe: sweep")
        for number in range(REFINEMENTS):
            what = f"linear probe: sweep, refinement {number + 1} of {REFINEMENTS}"
            trials += over_ranks(trial, between_neighbours(trials), embedder, what=what)
        return sorted(trials, key=lambda tried: tried.l2)

    def _result(
        self, data: LabelledFeatures, classifier: LinearClassifier, trials: list[Trial], l2: float
    ) -> Result:
        logits = classifier.logits(data.test)
        right = is_right(logits, data.test_label)
        wrong, guess = ~right, logits.argmax(dim=1)
        examples = _examples(logits, right, data)
        chance = 1 / len(data.classes)
        notes = {"num_train": len(data.train), "l2": l2}
        return Result(
            task="linear_probe",
            metrics={
                "lp_acc1": right.double().mean().item(),
                "mean_per_class_recall": mean_per_class_recall(right, data.test_label),
            },
            chance={"lp_acc1": chance, "mean_per_class_recall": chance},
            num_samples=len(right),
            notes=notes | ({"validation_acc1": best_of(trials).acc1} if trials else {}),
            details={
                "shards": parts(self.data.test),
                "num_classes": len(data.classes),
                "sweep": [(trial.l2, trial.acc1) for trial in trials],
                "confused": most_confused(
                    data.test_label[wrong], guess[wrong], dict(enumerate(data.classes))
                ),
                "examples": examples,
                "pictures": [example["sample"] for example in examples],
            },
            outcomes=(class_outcomes("lp_acc1", right, guess, data),),
        )


def best_of(trials: Sequence[Trial]) -> Trial:
    """Highest accuracy, of equals the lowest cross-entropy, of equals the strongest penalty."""
    return max(trials, key=lambda trial: (trial.acc1, -trial.cross_entropy, trial.l2))


def ends_open(trials: Sequence[Trial]) -> bool:
    """Whether the accuracy still rises where the sweep ends."""
    ordered = sorted(trials, key=lambda trial: trial.l2)
    place = ordered.index(best_of(trials))
    inward = {0: 1, len(ordered) - 1: -2}.get(place, place)
    return ordered[place].acc1 > ordered[inward].acc1


def between_neighbours(trials: Sequence[Trial]) -> list[float]:
    """The geometric means of the best value and those tried next below and above it."""
    tried = sorted(trial.l2 for trial in trials)
    place = tried.index(best_of(trials).l2)
    around = tried[max(0, place - 1) : place + 2]
    return [math.sqrt(low * high) for low, high in pairwise(around)]


def validation_rows(label: Int64[Tensor, " n"], *, share: float, seed: int) -> Tensor:
    """Which rows are kept: of each class its share, rounded up, but never all of them."""
    shuffled = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    order = shuffled[label[shuffled].argsort(stable=True)]  # class by class, shuffled within each
    counts = label.bincount()
    place = torch.arange(len(label)) - (counts.cumsum(0) - counts)[label[order]]
    wanted = torch.minimum((share * counts).ceil().long(), counts - 1)
    kept = torch.zeros(len(label), dtype=torch.bool)
    kept[order] = place < wanted[label[order]]
    return kept


def _warn(trials: Sequence[Trial], l2: float, classifier: LinearClassifier) -> None:
    if trials and ends_open(trials):
        log.warning("linear probe: the best l2=%g is at the end of the sweep; extend `l2` beyond it", l2)
    if not classifier.converged:
        log.warning("linear probe: the fit with l2=%g did not converge; try a larger `l2`", l2)


def _trial(logits: Tensor, label: Tensor, *, l2: float) -> Trial:
    cross_entropy = torch.nn.functional.cross_entropy(logits.double(), label).item()
    return Trial(l2=l2, acc1=is_right(logits, label).double().mean().item(), cross_entropy=cross_entropy)


def _regression(
    features: Tensor, label: Tensor, data: LabelledFeatures, embedder: Embedder
) -> LogisticRegression:
    device = embedder.device
    return LogisticRegression(features.to(device), label.to(device), num_classes=len(data.classes))


def refuse_nan(features: Tensor, train: Pictures) -> None:
    """Raise a `DataError` where the model gives vectors that nothing can be fitted to."""
    broken = int((~features.isfinite().all(dim=1)).sum())
    if broken:
        raise DataError(
            f"the model gives {broken} of {len(features)} pictures of train={train} vectors that are not "
            "finite; no probe can be fitted to them"
        )


def _examples(logits: Tensor, right: Tensor, data: LabelledFeatures) -> list[dict[str, Any]]:
    chosen = spread(len(logits), wanted=NUM_EXAMPLES)
    top = logits[chosen].double().softmax(dim=1).topk(min(NUM_GUESSES, len(data.classes)), dim=1)
    return [
        {
            "sample": sample,
            "right": bool(right[sample]),
            "true": data.classes[data.test_label[sample]],
            "guesses": [
                {
                    "caption": data.classes[guess],
                    "score": score,
                    "relevant": bool(data.test_label[sample] == guess),
                }
                for score, guess in zip(scores, guesses, strict=True)
            ],
        }
        for sample, scores, guesses in zip(chosen, top.values.tolist(), top.indices.tolist(), strict=True)
    ]
