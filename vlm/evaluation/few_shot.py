"""Ridge regression on a few pictures of each class."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import Result, parts
from vlm.evaluation.fields import Label
from vlm.evaluation.labelled import LabelledFeatures, TrainTest, is_right, most_confused, numbered
from vlm.evaluation.linear_probe import refuse_nan
from vlm.evaluation.outcomes import outcomes
from vlm.evaluation.over_ranks import over_ranks
from vlm.inference import Embedder, Pictures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What a draw of pictures gets on the test set."""

    right: Bool[ndarray, " m"]
    guess: Int64[ndarray, " m"]


class FewShotRidge:
    """Accuracy of ridge regression to one-hot labels, fitted to k training pictures of each class.

    It minimises |features · weight + bias - one-hot|² + l2 · |weight|², summed over the pictures drawn, the
    bias being free: in closed form, on features and targets less their means over these pictures. The metric
    of each k, `few_shot_acc1@k`, is the mean over `seeds`, the note `few_shot_acc1@k_std` their standard
    deviation. A seed draws an order of each class, of which k pictures are the first. Equal scores are wrong.

    Args:
        train, test: the two sets.
        label: field of a sample that holds its class, such as `cls`.
        shots: values of k; those above the pictures of the smallest class are left out, and stand in the
            note `shots_left_out`.
        l2: weight of the penalty.
        seeds: of the draws.

    Raises:
        ConfigError: a value is out of range.
        DataError: on use, where no value of k can be drawn.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        train: Pictures,
        test: Pictures,
        *,
        label: str,
        shots: Sequence[int],
        l2: float,
        seeds: Sequence[int],
    ) -> None:
        if not shots or min(shots) < 1:
            raise ConfigError(f"shots={list(shots)} has to be a list of numbers from 1 on")
        if not 0 < l2 < math.inf:
            raise ConfigError(f"l2={l2} has to be a number above 0")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds={list(seeds)} has to be a list of different numbers")
        self.data = TrainTest(train, test, label)
        self.shots = sorted(set(shots))
        self.l2 = l2
        self.seeds = list(seeds)

    def check(self) -> None:
        left_out = self._left_out(self.data.check())
        if left_out:
            logger.warning(
                "few shots: not every class of train=%s has that many pictures, so %s shots are left out",
                *(self.data.train, _listed(left_out)),
            )

    def __call__(self, embedder: Embedder) -> Result:
        data = self.data.read(embedder)
        refuse_nan(data.train, self.data.train)
        left_out = self._left_out([data.classes[label] for label in data.train_label.tolist()])
        drawn_shots = [shots for shots in self.shots if shots not in left_out]
        jobs = [(shots, seed) for shots in drawn_shots for seed in self.seeds]
        found = over_ranks(
            lambda job: self._trial(data, shots=job[0], seed=job[1]), jobs, embedder, what="few shots"
        )
        trials = {
            f"few_shot_acc1@{shots}": [
                trial for (own, _), trial in zip(jobs, found, strict=True) if own == shots
            ]
            for shots in drawn_shots
        }
        accuracy = {name: [float(trial.right.mean()) for trial in own] for name, own in trials.items()}
        guess = _most_frequent(found[-len(self.seeds) :])
        wrong = guess != data.test_label
        return Result(
            task="few_shot",
            metrics={name: fmean(values) for name, values in accuracy.items()},
            chance=dict.fromkeys(accuracy, 1 / len(data.classes)),
            num_samples=len(data.test),
            notes={
                "l2": self.l2,
                "num_seeds": len(self.seeds),
                **{
                    f"{name}_std": stdev(values) if len(values) > 1 else 0.0
                    for name, values in accuracy.items()
                },
                **({"shots_left_out": _listed(left_out)} if left_out else {}),
            },
            details={
                "shards": parts(self.data.test),
                "num_classes": len(data.classes),
                "confused": most_confused(
                    data.test_label[wrong], guess[wrong], dict(enumerate(data.classes))
                ),
                "pictures": [],
            },
            outcomes=(
                outcomes(
                    "picture",
                    {name: np.mean([trial.right for trial in own], axis=0) for name, own in trials.items()},
                    category=[data.classes[label] for label in data.test_label.tolist()],
                    answer=[data.classes[label] for label in guess.tolist()],
                ),
            ),
        )

    def _trial(self, data: LabelledFeatures, *, shots: int, seed: int) -> _Trial:
        rows = drawn(data.train_label, shots=shots, seed=seed)
        target = torch.nn.functional.one_hot(data.train_label[rows], len(data.classes)).double()
        weight, bias = ridge(data.train[rows], target, l2=self.l2)
        logits = torch.cat(
            [(block.double() @ weight + bias).float() for block in torch.split(data.test, 4096)]
        )
        return _Trial(right=is_right(logits, data.test_label).numpy(), guess=logits.argmax(dim=1).numpy())

    def _left_out(self, train: Sequence[Label]) -> list[int]:
        """The shots that not every class has, given the class of each training picture."""
        number = numbered(train)
        counts = torch.tensor([number[value] for value in train]).bincount().tolist()
        fewest, label = min(zip(counts, number, strict=True), key=lambda pair: pair[0])
        if fewest < self.shots[0]:
            raise DataError(
                f"shots={self.shots}: train={self.data.train} has {fewest} pictures of "
                f"{self.data.label}={label!r}, too few to draw any of these; add {fewest} to `shots`, or "
                "pictures to `train`"
            )
        return [shots for shots in self.shots if shots > fewest]


def drawn(label: Int64[Tensor, " n"], *, shots: int, seed: int) -> Int64[Tensor, " s"]:
    """`shots` rows of each label; those of fewer shots are among those of more."""
    shuffled = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    order = shuffled[label[shuffled].argsort(stable=True)]  # class by class, shuffled within each
    counts = label.bincount()
    place = torch.arange(len(label)) - (counts.cumsum(0) - counts)[label[order]]
    return order[place < shots]


def ridge(
    features: Float[Tensor, "n d"], target: Float[Tensor, "n c"], *, l2: float
) -> tuple[Float[Tensor, "d c"], Float[Tensor, " c"]]:
    """Weight and bias of least squares with a penalty on the weight; double precision."""
    features, target = features.double(), target.double()
    centre, mean = features.mean(dim=0), target.mean(dim=0)
    x, y = features - centre, target - mean
    if len(x) < x.shape[1]:  # fewer pictures than dimensions: the same weight from the smaller system
        kernel = x @ x.T + l2 * torch.eye(len(x), dtype=x.dtype)
        weight = x.T @ torch.linalg.solve(kernel, y)
    else:
        weight = torch.linalg.solve(x.T @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return weight, mean - centre @ weight


def _most_frequent(trials: Sequence[_Trial]) -> Int64[Tensor, " m"]:
    """The class that most draws give to each picture; of equals the first."""
    return torch.from_numpy(np.stack([trial.guess for trial in trials])).mode(dim=0).values


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
