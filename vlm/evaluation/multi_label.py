"""Zero-shot classification of pictures with several labels each."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from vlm.data import lookup
from vlm.errors import DataError
from vlm.evaluation.class_names import ClassNames
from vlm.evaluation.evaluator import Result, parts, spread
from vlm.evaluation.fields import Label
from vlm.evaluation.labelled import numbered
from vlm.evaluation.outcomes import outcomes
from vlm.evaluation.ranking import expected_precision, scores
from vlm.evaluation.zero_shot import ByName, first_names, refuse_unnamed
from vlm.inference import Embedder

BLOCK_ENTRIES = 1 << 23
"""Scores held at once."""
NUM_EXAMPLES = 12
NUM_GUESSES = 5


class MultiLabelZeroShot(ByName):
    """Mean average precision of finding the pictures of each class by its name, put into sentences.

    The average precision of a class is the mean, over its pictures, of the precision among all that score as
    high or higher; the metric is the mean over the classes that occur. Of equal scores those of other
    pictures stand first, so that the order of the data set does not matter.

    Args:
        shards: the data set.
        classes: the class names and the label that each stands for; of several names the best counts.
        label: field of a sample that holds the list of its labels, which may be empty, such as `json.labels`.
        templates: as those of `ZeroShot`.
    """

    def __call__(self, embedder: Embedder) -> Result:
        images = embedder.images(self.shards)
        names = self._names
        number = numbered(names.labels)
        group = torch.tensor([number[value] for value in names.labels])
        true = _one_hot(self._labels(images.records), number)
        vectors, truncated = self._vectors(embedder)
        precision, best = _by_class(images.features, vectors, group, true)
        present = true.any(dim=0)
        relevant = true.sum(dim=0)[present]
        everything = torch.full_like(relevant, len(true))
        first_name = first_names(group, names)
        examples = _examples(images.features, vectors, group, true, names)
        return Result(
            task="multilabel_classification",
            metrics={"mean_average_precision": precision[present].mean().item()},
            chance={"mean_average_precision": expected_precision(relevant, everything, num_items=len(true))},
            num_samples=len(true),
            notes={
                "num_absent": int((~present).sum()),
                "truncated": truncated,
            },
            details={
                "shards": parts(self.shards),
                "num_names": len(names.names),
                "num_labels": len(number),
                "examples": examples,
                "pictures": [example["sample"] for example in examples],
            },
            outcomes=(
                outcomes(
                    "class",
                    {"mean_average_precision": precision[present]},
                    picture=best[present],
                    category=[first_name[own] for own in present.nonzero().flatten().tolist()],
                ),
            ),
        )

    def _labels(self, records: list[dict[str, Any]]) -> list[list[Label]]:
        found: list[list[Label]] = []
        for record in records:
            value = lookup(record, self.label)
            own: list[Any] = value if isinstance(value, list) else [value]
            if not all(isinstance(label, int | str) for label in own):
                raise DataError(
                    f"sample {record['key']} has {self.label}={value!r:.80}; expected a list of numbers "
                    "or texts as its labels"
                )
            found.append(own)
        refuse_unnamed(
            [(record["key"], label) for record, own in zip(records, found, strict=True) for label in own],
            self._names,
            field=self.label,
            classes=self.classes,
        )
        if not any(found):
            raise DataError(f"no sample of {self.shards} has a label in {self.label}; set `label`")
        return found


def _one_hot(labels: Sequence[Sequence[Label]], number: dict[Label, int]) -> Bool[Tensor, "n c"]:
    true = torch.zeros(len(labels), len(number), dtype=torch.bool)
    for row, own in enumerate(labels):
        true[row, [number[label] for label in own]] = True
    return true


def _by_class(
    features: Float[Tensor, "n d"],
    vectors: Float[Tensor, "m d"],
    group: Int64[Tensor, " m"],
    true: Bool[Tensor, "n c"],
) -> tuple[Float64[Tensor, " c"], Int64[Tensor, " c"]]:
    """The average precision of each class, and the first picture that is of it."""
    order = group.argsort(stable=True)
    step = max(1, BLOCK_ENTRIES // len(features))
    found = []
    for start in range(0, true.shape[1], step):
        own = order[(group[order] >= start) & (group[order] < start + step)]
        relevant = true[:, start : start + step]
        named = scores(features, vectors[own])
        block = _best_of_names(named, group[own] - start, num_classes=relevant.shape[1])
        found.append(average_precision(block, relevant))
    return torch.cat(found), true.int().argmax(dim=0)


def _best_of_names(
    block: Float[Tensor, "n m"], group: Int64[Tensor, " m"], *, num_classes: int
) -> Float[Tensor, "n c"]:
    best = block.new_full((len(block), num_classes), -torch.inf)
    return best.scatter_reduce(1, group.expand(len(block), -1), block, "amax")


def average_precision(score: Float[Tensor, "n c"], true: Bool[Tensor, "n c"]) -> Float64[Tensor, " c"]:
    """Of each class; 0 where nothing is of it. Equal scores of wrong pictures, and nan, count against it."""
    wrong_first = true.int().argsort(dim=0, stable=True)
    score = torch.where(score.isnan(), torch.where(true, -torch.inf, torch.inf), score)
    order = score.gather(0, wrong_first).argsort(dim=0, descending=True, stable=True)
    hit = true.gather(0, wrong_first).gather(0, order)
    place = torch.arange(1, len(score) + 1, dtype=torch.float64)[:, None]
    precision = hit.cumsum(dim=0) / place
    return (precision * hit).sum(dim=0) / hit.sum(dim=0).clamp(min=1)


def _examples(
    features: Tensor, vectors: Tensor, group: Tensor, true: Tensor, names: ClassNames
) -> list[dict[str, Any]]:
    chosen = spread(len(features), wanted=NUM_EXAMPLES)
    top = scores(features[chosen], vectors).topk(min(NUM_GUESSES, len(vectors)), dim=1)
    first = first_names(group, names)
    return [
        {
            "sample": sample,
            "true": ", ".join(first[own] for own in true[sample].nonzero().flatten().tolist()),
            "guesses": [
                {
                    "caption": names.names[guess],
                    "score": score,
                    "relevant": bool(true[sample, group[guess]]),
                }
                for score, guess in zip(values, guesses, strict=True)
            ],
        }
        for sample, values, guesses in zip(chosen, top.values.tolist(), top.indices.tolist(), strict=True)
    ]
