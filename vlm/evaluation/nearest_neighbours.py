"""Weighted nearest neighbours: the classes of the most similar training pictures vote."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from vlm.errors import ConfigError
from vlm.evaluation.evaluator import Result, spread
from vlm.evaluation.labelled import (
    LabelledFeatures,
    TrainTest,
    class_outcomes,
    mean_per_class_recall,
    most_confused,
)
from vlm.evaluation.over_ranks import over_ranks
from vlm.evaluation.ranking import scores
from vlm.inference import Embedder, Pictures

logger = logging.getLogger(__name__)

QUERY_ROWS, TRAIN_ROWS = 512, 4096
"""Of a tile of similarities: 16 MiB in double precision, whatever the sizes of the sets."""
NUM_EXAMPLES = 12
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What the neighbours of m test rows say."""

    right: Tensor
    """bool [m]: the row's own class has more votes than any other."""
    guess: Int64[Tensor, " m"]
    """The class with the most votes."""
    share: Float[Tensor, " m"]
    """Of all votes, those for the guess."""
    nearest: Int64[Tensor, "m s"]
    """The first training rows, nearest first."""
    similarity: Float[Tensor, "m s"]


class NearestNeighbours:
    """Accuracy of the vote of the k training pictures that are nearest by cosine, each weighing exp(cos/T).

    Ties are pessimistic: of training pictures that are equally near those of a wrong class come first, and a
    class with as many votes as another has not won.

    Args:
        train, test: the two sets.
        label: field of a sample that holds its class, such as `cls`.
        k: neighbours that vote; all training pictures where there are fewer.
        temperature: T.

    Source: arXiv:2104.14294, section 4.1, with the weights of arXiv:1805.01978, section 3.4.

    Raises:
        ConfigError: `k` is below 1, or `temperature` is not above 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, train: Pictures, test: Pictures, *, label: str, k: int, temperature: float) -> None:
        if k < 1:
            raise ConfigError(f"k={k} must be at least 1")
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature} must be above 0")
        self.data = TrainTest(train, test, label)
        self.k = k
        self.temperature = temperature

    def check(self) -> None:
        num_train = len(self.data.check())
        if self.k > num_train:
            logger.warning(
                "nearest neighbours: train=%s has %d samples, fewer than k=%d; all of them vote",
                *(self.data.train, num_train, self.k),
            )

    def __call__(self, embedder: Embedder) -> Result:
        data = self.data.read(embedder)
        k = min(self.k, len(data.train))
        votes = weighted_votes(data, embedder, k=k, temperature=self.temperature)
        examples = _examples(votes, data)
        wrong = ~votes.right
        shown = [item["position"] for example in examples for item in example["found"]]
        return Result(
            task="knn",
            metrics={
                "knn_acc1": votes.right.double().mean().item(),
                "mean_per_class_recall": mean_per_class_recall(votes.right, data.test_label),
            },
            chance=dict.fromkeys(("knn_acc1", "mean_per_class_recall"), 1 / len(data.classes)),
            num_samples=len(data.test),
            notes={"num_train": len(data.train), "k": k, "temperature": self.temperature},
            details={
                "shards": self.data.pictures(),
                "num_classes": len(data.classes),
                "confused": most_confused(
                    data.test_label[wrong], votes.guess[wrong], dict(enumerate(data.classes))
                ),
                "examples": examples,
                "pictures": sorted({*shown, *(example["position"] for example in examples)}),
            },
            outcomes=(class_outcomes("knn_acc1", votes.right, votes.guess, data),),
        )


def weighted_votes(data: LabelledFeatures, embedder: Embedder, *, k: int, temperature: float) -> Votes:
    """The votes for every test row; the ranks share the rows."""
    train, train_label = data.train.to(embedder.device), data.train_label.to(embedder.device)

    def work(rows: slice) -> tuple[ndarray, ...]:
        test, label = data.test[rows].to(embedder.device), data.test_label[rows].to(embedder.device)
        similarity, found = nearest(test, train, label, train_label, k=k)
        # The largest is subtracted: exp(1/T) overflows where T is small.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(test), len(data.classes), dtype=torch.float64, device=test.device)
        votes = votes.scatter_add_(1, train_label[found], weight).float()  # equal sums are equal numbers
        own = votes.gather(1, label[:, None])
        right = (own > votes.scatter(1, label[:, None], -torch.inf)).all(dim=1)
        most = votes.max(dim=1)
        share = most.values / votes.sum(dim=1)
        parts = right, most.indices, share, found[:, :NUM_SHOWN], similarity[:, :NUM_SHOWN].float()
        return tuple(part.cpu().numpy() for part in parts)

    blocks = [slice(start, start + QUERY_ROWS) for start in range(0, len(data.test), QUERY_ROWS)]
    parts = over_ranks(work, blocks, embedder, what="nearest neighbours")
    right, guess, share, found, similarity = (
        torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)
    )
    return Votes(right=right, guess=guess, share=share, nearest=found, similarity=similarity)


def nearest(
    test: Float[Tensor, "m d"],
    train: Float[Tensor, "n d"],
    test_label: Int64[Tensor, " m"],
    train_label: Int64[Tensor, " n"],
    *,
    k: int,
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Cosines, in double precision, and positions of the k nearest training rows, nearest first.

    Of equally near rows those of another class than the test row's stand first; nan is nearest in a row of
    another class, and farthest in one of the same.
    """
    best = torch.empty(len(test), 0, dtype=torch.float64, device=test.device)
    place = torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    test = test.double()
    for rows in _tiles(len(train)):
        tile = scores(test, train[rows]).double()
        same = test_label[:, None] == train_label[rows]
        # Between two neighbouring numbers of single precision there is room in double precision.
        below = tile.nextafter(tile.new_tensor(-torch.inf)).nan_to_num_(nan=-torch.inf)
        tile = torch.where(same, below, tile)
        top = tile.topk(min(k, tile.shape[1]), dim=1)
        joint = torch.cat([best, top.values], dim=1)
        kept = joint.topk(min(k, joint.shape[1]), dim=1)
        place = torch.cat([place, top.indices + rows.start], dim=1).gather(1, kept.indices)
        best = kept.values
    return best, place


def _tiles(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + TRAIN_ROWS) for start in range(0, num_rows, TRAIN_ROWS))


def _examples(votes: Votes, data: LabelledFeatures) -> list[dict[str, Any]]:
    """A few test pictures, each with its nearest training pictures, which stand behind the test set."""
    return [
        {
            "position": row,
            "true": data.classes[data.test_label[row]],
            "guess": data.classes[votes.guess[row]],
            "right": bool(votes.right[row]),
            "share": float(votes.share[row]),
            "found": [
                {
                    "position": len(data.test) + item,
                    "caption": data.classes[data.train_label[item]],
                    "score": score,
                    "relevant": bool(data.train_label[item] == data.test_label[row]),
                }
                for item, score in zip(
                    votes.nearest[row].tolist(), votes.similarity[row].tolist(), strict=True
                )
            ],
        }
        for row in spread(len(data.test), wanted=NUM_EXAMPLES)
    ]
