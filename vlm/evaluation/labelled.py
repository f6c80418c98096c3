"""Pictures with a class each, and how well the classes given to them fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vlm.data import ImageSource
from vlm.errors import DataError
from vlm.evaluation.evaluator import parts, places_of, records_of
from vlm.evaluation.fields import Label, label_of
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.inference import Embedder, Pictures

NUM_CONFUSED = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFeatures:
    """Unit vectors of a training and a test set, and the number of the class of each row."""

    train: Float[Tensor, "n d"]
    train_label: Int64[Tensor, " n"]
    test: Float[Tensor, "m d"]
    test_label: Int64[Tensor, " m"]
    classes: list[str]
    """The label of each class as a text, by its number."""


@dataclass(frozen=True, slots=True)
class TrainTest:
    """Where a training and a test set lie, and the field of a sample that holds its class."""

    train: Pictures
    test: Pictures
    label: str

    def check(self) -> list[Label]:
        """The class of each training picture.

        Raises:
            DataError: a sample has no class, the training set has a single one, the test set has one more,
                or both sets have a shard in common.
        """
        refuse_common_pictures({"train": self.train, "test": self.test})
        train = labels_of(records_of(self.train, key="train"), self.label)
        self._numbers(train, records_of(self.test, key="test"))
        return train

    def read(self, embedder: Embedder) -> LabelledFeatures:
        """The same on every rank. Raises what `check` raises of the classes."""
        train, test = embedder.images(self.train), embedder.images(self.test)
        train_label = labels_of(train.records, self.label)
        number = self._numbers(train_label, test.records)
        test_label = labels_of(test.records, self.label)
        return LabelledFeatures(
            train=train.features,
            train_label=torch.tensor([number[value] for value in train_label]),
            test=test.features,
            test_label=torch.tensor([number[value] for value in test_label]),
            classes=[str(value) for value in number],
        )

    def pictures(self) -> list[str | ImageSource]:
        """The test set and behind it the training set, to show pictures of."""
        return parts(self.test, self.train)

    def _numbers(self, train: list[Label], test: list[dict[str, Any]]) -> dict[Label, int]:
        number = numbered(train)
        if len(number) < 2:
            raise DataError(
                f"every sample of train={self.train} has {self.label}={train[0]!r}; name the field that "
                "holds the class by `label`, or shards with at least two classes"
            )
        for record, value in zip(test, labels_of(test, self.label), strict=True):
            if value not in number:
                raise DataError(
                    f"sample {record['key']} of test={self.test} has {self.label}={value!r}, which no sample "
                    f"of train={self.train} has; add such samples to `train`, or leave it out of `test`"
                )
        return number


def labels_of(records: Sequence[Mapping[str, Any]], field: str) -> list[Label]:
    """The label of each sample. Raises `DataError` naming the first without one."""
    try:
        return [label_of(record, field) for record in records]
    except DataError as error:
        raise DataError(f"{error}; name the field that holds the class by `label`") from error


def numbered(labels: Sequence[Label]) -> dict[Label, int]:
    """The number of each label, in the order in which they first occur."""
    return {value: number for number, value in enumerate(dict.fromkeys(labels))}


def mean_per_class_recall(right: Bool[Tensor, " n"], label: Int64[Tensor, " n"]) -> float:
    """The share that is right, averaged over the labels that occur, however many rows each has."""
    counts = label.bincount()
    hits = label.bincount(weights=right.double())
    return (hits / counts)[counts > 0].mean().item()


def is_right(logits: Float[Tensor, "n c"], label: Int64[Tensor, " n"]) -> Tensor:
    """Whether a row's own class scores above every other; an equal score or nan is wrong."""
    own = logits.gather(1, label[:, None])
    others = logits.scatter(1, label[:, None], -torch.inf)
    return (own > others).all(dim=1)


def class_outcomes(
    accuracy: str, right: Bool[Tensor, " n"], guess: Int64[Tensor, " n"], data: LabelledFeatures
) -> Outcomes:
    """Of a test set: `accuracy`, and the recall averaged over classes."""
    return outcomes(
        "picture",
        {accuracy: right, "mean_per_class_recall": right},
        category=[data.classes[label] for label in data.test_label.tolist()],
        answer=[data.classes[label] for label in guess.tolist()],
        balanced=["mean_per_class_recall"],
    )


def most_confused(
    true: Int64[Tensor, " n"], guess: Int64[Tensor, " n"], name_of: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Pairs of classes by how often the one was given to pictures of the other; every row is a mistake."""
    pairs = zip(true.tolist(), guess.tolist(), strict=True)
    return [
        {"true": name_of[shown], "guess": name_of[named], "count": count}
        for (shown, named), count in Counter(pairs).most_common(NUM_CONFUSED)
    ]


def refuse_common_pictures(sets: Mapping[str, Pictures]) -> None:
    """Raise a `DataError` where two data sets, named by their keys, share a shard or an image file."""
    first, second = (places_of(pictures, key=key) for key, pictures in sets.items())
    common = sorted(place if isinstance(place, str) else place.path for place in first & second)
    if common:
        raise DataError(f"{' and '.join(sets)} both hold {common[0]!r}; a picture would be scored by itself")
