"""Zero-shot classification: which class name, put into sentences, is nearest to the picture."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from vlm.errors import ConfigError, DataError
from vlm.evaluation.class_names import ClassNames, ClassSource
from vlm.evaluation.evaluator import Result, parts, records_of, spread
from vlm.evaluation.fields import Label, label_of, read_text
from vlm.evaluation.labelled import mean_per_class_recall, most_confused, numbered
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.evaluation.ranking import Ranking, Relevant, chance_of_hit, group_sizes, rank_relevant, top_matches
from vlm.evaluation.truncation import embedded
from vlm.inference import Embedder, Pictures, TextEmbeddings

NUM_EXAMPLES = 12
NUM_GUESSES = 3


class ByName(ABC):
    """A classification by class names in sentences; arguments as of `ZeroShot`."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(
        self,
        shards: Pictures,
        classes: ClassSource,
        *,
        label: str,
        templates: str | Sequence[str],
    ) -> None:
        self.shards = shards
        self.classes = classes
        self.label = label
        self.templates = templates

    @cached_property
    def _names(self) -> ClassNames:
        return self.classes.read()

    @cached_property
    def _sentences(self) -> list[str]:
        return read_templates(self.templates)

    def check(self) -> None:
        self._labels(records_of(self.shards))
        _ = self._sentences

    @abstractmethod
    def _labels(self, records: list[dict[str, Any]]) -> Sequence[Any]:
        """What stands in the field `label` of each sample, checked."""

    def _vectors(self, embedder: Embedder) -> TextEmbeddings:
        """One unit vector for each name: the mean of those of its prompts."""
        prompts = prompts_of(self._names.names, self._sentences)
        return embedded(prompts, embedder, what="prompts", ensemble=len(self._sentences))


class ZeroShot(ByName):
    """Accuracy of naming the class of each picture, with an ensemble of prompts a class.

    Args:
        shards: the data set.
        classes: the class names and the label that each stands for; several may stand for one label, and
            any of them is then right.
        label: field of a sample that holds its label, such as `cls` or `json.concept`.
        templates: sentences with `{c}` where the class name goes, or a text file with one a line.

    Raises:
        ConfigError: a template without `{c}`, or no template.
    """

    def __call__(self, embedder: Embedder) -> Result:
        images = embedder.images(self.shards)
        classes = self._names
        ids = numbered(classes.labels)
        class_group = torch.tensor([ids[value] for value in classes.labels])
        label = torch.tensor([ids[value] for value in self._labels(images.records)])
        vectors, truncated = self._vectors(embedder)
        ranking = rank_relevant(images.features, vectors, Relevant.of_groups(label, class_group))
        rank = ranking.rank - namesakes(classes, class_group)[ranking.best]
        ranking = replace(ranking, rank=rank)
        examples = _examples(images.features, vectors, ranking, class_group, classes)
        metrics = zero_shot_metrics(ranking.rank, label, num_names=len(classes.names))
        return Result(
            task="zeroshot_classification",
            metrics=metrics,
            chance=zero_shot_chance(label, class_group),
            num_samples=len(label),
            notes={"num_absent": len(ids) - len(set(label.tolist())), "truncated": truncated},
            details={
                "shards": parts(self.shards),
                "num_names": len(classes.names),
                "num_labels": len(ids),
                "num_templates": len(self._sentences),
                "confused": _most_confused(ranking, class_group, classes),
                "examples": examples,
                "pictures": [example["sample"] for example in examples],
            },
            outcomes=(_outcomes(ranking, metrics, class_group, classes),),
        )

    def _labels(self, records: list[dict[str, Any]]) -> list[Label]:
        labels = [label_of(record, self.label) for record in records]
        found = [(record["key"], value) for record, value in zip(records, labels, strict=True)]
        refuse_unnamed(found, self._names, field=self.label, classes=self.classes)
        return labels


def refuse_unnamed(
    found: Sequence[tuple[str, Label]], names: ClassNames, *, field: str, classes: ClassSource
) -> None:
    """Raise a `DataError` where a label of a sample, given with its key, has no name."""
    known = set(names.labels)
    unknown = [(key, value) for key, value in found if value not in known]
    if unknown:
        key, value = unknown[0]
        raise DataError(
            f"sample {key} has {field}={value!r}, which is not in the class list ({classes}): the samples "
            f"have {len({value for _, value in found})} labels, the list has names for {len(known)}, and "
            f"{len({value for _, value in unknown})} labels are without; complete the list, or name another "
            "field by `label`"
        )


def namesakes(classes: ClassNames, class_group: Int64[Tensor, " c"]) -> Int64[Tensor, " c"]:
    """How many classes behind that of each name share the name: no model can tell these apart.

    They score the same, and as equal scores they would stand before it: no picture of either class would be
    right. The first of them is given the picture instead, so that half the pictures are, as where other
    tools break ties by chance. ImageNet has two such names, `missile` and `sunglasses`.
    """
    groups = class_group.tolist()
    labels: dict[str, dict[int, None]] = {}
    for name, group in zip(classes.names, groups, strict=True):
        labels.setdefault(name, {})[group] = None
    place = {name: {group: row for row, group in enumerate(own)} for name, own in labels.items()}
    behind = [
        len(labels[name]) - 1 - place[name][group] for name, group in zip(classes.names, groups, strict=True)
    ]
    return torch.tensor(behind)


def read_templates(templates: str | Sequence[str]) -> list[str]:
    """The templates themselves, or the lines of the file they stand in, without blanks around them."""
    if isinstance(templates, str):
        path = Path(templates)
        if not path.is_file():
            raise ConfigError(f"templates={templates}: no such file; give a text file or a list of sentences")
        lines = read_text(path).split("\n")
        return _checked([line.strip() for line in lines if line.strip()], f"templates={path}")
    return _checked(templates, "templates")


def _checked(templates: Sequence[str], where: str) -> list[str]:
    if not templates:
        raise ConfigError(f"{where} is empty; give at least one sentence with {{c}}, or just '{{c}}'")
    for template in templates:
        if "{c}" not in template:
            raise ConfigError(f"{where}: {template!r} has no {{c}}, where the class name goes")
    return list(templates)


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template with each name, name by name."""
    return [template.replace("{c}", name) for name in names for template in templates]


def zero_shot_metrics(
    rank: Int64[Tensor, " n"], label: Int64[Tensor, " n"], *, num_names: int
) -> dict[str, float]:
    """`acc1`, `acc5` (from five class names on) and `mean_per_class_recall`.

    The recall is averaged over the labels that occur, each weighing the same however many pictures it has.
    """
    metrics = {f"acc{k}": (rank <= k).double().mean().item() for k in _ks(num_names)}
    metrics["mean_per_class_recall"] = mean_per_class_recall(rank <= 1, label)
    return metrics


def zero_shot_chance(label: Int64[Tensor, " n"], class_group: Int64[Tensor, " c"]) -> dict[str, float]:
    """What guessing gets in each of `zero_shot_metrics`."""
    per_label = group_sizes(label, class_group)
    chance = {
        f"acc{k}": chance_of_hit(per_label, num_items=len(class_group), k=k) for k in _ks(len(class_group))
    }
    present = label.bincount().nonzero().flatten()
    chance["mean_per_class_recall"] = chance_of_hit(
        group_sizes(present, class_group), num_items=len(class_group), k=1
    )
    return chance


def _ks(num_names: int) -> list[int]:
    return [k for k in (1, 5) if k <= num_names]


def _outcomes(
    ranking: Ranking, metrics: Mapping[str, float], class_group: Tensor, classes: ClassNames
) -> Outcomes:
    """Each picture's class, by its first name, and that of the name that stands first."""
    name_of = first_names(class_group, classes)
    right = ranking.rank <= 1
    named = torch.where(right, ranking.best, ranking.rival)
    return outcomes(
        "picture",
        {metric: ranking.rank <= (5 if metric == "acc5" else 1) for metric in metrics},
        category=[name_of[group] for group in class_group[ranking.best].tolist()],
        answer=[name_of[group] for group in class_group[named].tolist()],
        balanced=["mean_per_class_recall"],
    )


def first_names(class_group: Tensor, classes: ClassNames) -> dict[int, str]:
    """The first name of each group."""
    name_of: dict[int, str] = {}
    for name, group in zip(classes.names, class_group.tolist(), strict=True):
        name_of.setdefault(group, name)
    return name_of


def _most_confused(ranking: Ranking, class_group: Tensor, classes: ClassNames) -> list[dict[str, Any]]:
    """Pairs of labels by how often pictures of the one were given to the other."""
    name_of = first_names(class_group, classes)
    wrong = ranking.rank > 1
    true, guess = class_group[ranking.best[wrong]], class_group[ranking.rival[wrong]]
    return most_confused(true, guess, name_of)


def _examples(
    features: Tensor, vectors: Tensor, ranking: Ranking, class_group: Tensor, classes: ClassNames
) -> list[dict[str, Any]]:
    chosen = spread(len(features), wanted=NUM_EXAMPLES)
    scores, guesses = top_matches(features[chosen], vectors, k=NUM_GUESSES)
    return [
        {
            "sample": sample,
            "rank": int(ranking.rank[sample]),
            "true": classes.names[ranking.best[sample]],
            "guesses": [
                {
                    "caption": classes.names[guess],
                    "score": score,
                    "relevant": bool(class_group[guess] == class_group[ranking.best[sample]]),
                }
                for score, guess in zip(row_scores, row, strict=True)
            ],
        }
        for sample, row_scores, row in zip(chosen, scores.tolist(), guesses.tolist(), strict=True)
    ]
