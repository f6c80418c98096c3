"""Where a difference between two checkpoints comes from: classes, confusions, single cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from vlm.evaluation.evaluator import spread
from vlm.evaluation.sweep_report.cells import Question
from vlm.evaluation.sweep_report.rows import Labels, Rows

CLASSES_SHOWN = 15
"""Each way."""
MATRIX_UP_TO = 20
"""Classes; of more, the pairs that are confused most."""
PAIRS_SHOWN = 15
_RIGHT = 0.5
"""A query is one that a checkpoint alone gets right if it is better by this much of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChange:
    """The queries of one class or category."""

    name: str
    count: int
    before: float
    after: float
    share: float
    """What the class adds to the difference of the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Queries by true class, down, and by answer, across, of two checkpoints."""

    names: list[str]
    before: Int64[ndarray, "c c"]
    after: Int64[ndarray, "c c"]

    def share(self, counts: Int64[ndarray, "c c"], row: int, column: int) -> float:
        """Of the queries of a class."""
        return float(counts[row, column] / max(1, counts[row].sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A class that was taken for another, and how often by each checkpoint."""

    true: str
    answer: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A query that one checkpoint alone got right."""

    picture: int
    """Position in the data set."""
    true: str
    asked: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One question, put to two checkpoints."""

    question: Question
    metric: str
    distance: float
    """How far apart the two are."""
    gains: list[ClassChange]
    losses: list[ClassChange]
    num_classes: int
    matrix: Matrix | None
    pairs: list[Pair]
    won: list[Case]
    """Right by the second alone."""
    lost: list[Case]
    """Right by the first alone."""
    num_won: int
    num_lost: int
    pictures: Mapping[str, Any]
    """Where they lie."""

    @property
    def cases(self) -> list[Case]:
        """All that are shown."""
        return [*self.won, *self.lost]


def make_detail(
    question: Question,
    before: Rows,
    after: Rows,
    *,
    metric: str,
    pictures: Mapping[str, Any],
    wanted: int,
) -> Detail:
    """What two checkpoints did on the same queries.

    Args:
        wanted: cases each way.
    """
    changes = _class_changes(before, after)
    better = after.values - before.values
    gains = sorted((c for c in changes if c.share > 0), key=lambda change: -change.share)
    losses = sorted((c for c in changes if c.share < 0), key=lambda change: change.share)
    matrix, pairs = _confusion(before, after)
    won, lost = np.flatnonzero(better >= _RIGHT), np.flatnonzero(better <= -_RIGHT)
    return Detail(
        question=question,
        metric=metric,
        distance=abs(sum(change.share for change in changes) if changes else float(better.mean())),
        gains=gains[:CLASSES_SHOWN],
        losses=losses[:CLASSES_SHOWN],
        num_classes=len(changes),
        matrix=matrix,
        pairs=pairs,
        won=_cases(won, before, after, wanted),
        lost=_cases(lost, before, after, wanted),
        num_won=len(won),
        num_lost=len(lost),
        pictures=pictures,
    )


def _class_changes(before: Rows, after: Rows) -> list[ClassChange]:
    """A class each; none where queries have none or there is one class alone."""
    names, code = before.category.names, before.category.code
    count = np.bincount(code, minlength=len(names))
    occurring = [place for place in np.flatnonzero(count).tolist() if names[place]]
    if len(occurring) < 2:
        return []
    old, new = _class_means(before, count), _class_means(after, count, code=code)
    weight = np.full(len(names), 1 / len(occurring)) if before.balanced else count / count.sum()
    return [
        ClassChange(
            name=names[place],
            count=int(count[place]),
            before=float(old[place]),
            after=float(new[place]),
            share=float((new[place] - old[place]) * weight[place]),
        )
        for place in occurring
    ]


def _class_means(
    rows: Rows, count: Int64[ndarray, " c"], *, code: Int64[ndarray, " n"] | None = None
) -> Float64[ndarray, " c"]:
    sums = np.bincount(rows.category.code if code is None else code, rows.values, minlength=len(count))
    means: Float64[ndarray, " c"] = sums / np.maximum(count, 1)
    return means


def _confusion(before: Rows, after: Rows) -> tuple[Matrix | None, list[Pair]]:
    """A matrix of few classes, pairs of many, neither where answers are no classes."""
    classes = set(_used(before.category)) - {""}
    answers = (set(_used(before.answer)) | set(_used(after.answer))) - {""}
    # A class may be guessed that no picture has; captions and the like are hardly ever classes.
    if not classes or not answers or len(classes & answers) < len(answers) / 2:
        return None, []
    names = sorted(classes | answers)
    old, new = (_counts(before.category, rows.answer, names) for rows in (before, after))
    if len(names) <= MATRIX_UP_TO:
        return Matrix(names=names, before=_dense(old, names), after=_dense(new, names)), []
    return None, _pairs(old, new, names)


Counts = dict[tuple[int, int], int]
"""Of queries, by class and answer."""


def _counts(true: Labels, answer: Labels, names: Sequence[str]) -> Counts:
    place = {name: number for number, name in enumerate(names)}
    to_true = np.array([place.get(name, -1) for name in true.names], dtype=np.int64)[true.code]
    to_answer = np.array([place.get(name, -1) for name in answer.names], dtype=np.int64)[answer.code]
    known: Bool[ndarray, " n"] = (to_true >= 0) & (to_answer >= 0)
    key, count = np.unique(to_true[known] * len(names) + to_answer[known], return_counts=True)
    return {divmod(int(both), len(names)): int(number) for both, number in zip(key, count, strict=True)}


def _dense(counts: Counts, names: Sequence[str]) -> Int64[ndarray, "c c"]:
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for place, count in counts.items():
        matrix[place] = count
    return matrix


def _pairs(before: Counts, after: Counts, names: Sequence[str]) -> list[Pair]:
    wrong = [place for place in before.keys() | after.keys() if place[0] != place[1]]
    wrong.sort(key=lambda place: (-max(before.get(place, 0), after.get(place, 0)), place))
    return [
        Pair(
            true=names[true],
            answer=names[answer],
            before=before.get((true, answer), 0),
            after=after.get((true, answer), 0),
        )
        for true, answer in wrong[:PAIRS_SHOWN]
    ]


def _used(labels: Labels) -> list[str]:
    return [labels.names[place] for place in np.unique(labels.code)]


def _cases(chosen: Int64[ndarray, " k"], before: Rows, after: Rows, wanted: int) -> list[Case]:
    """Evenly spaced over the data set."""
    rows = [int(chosen[place]) for place in spread(len(chosen), wanted=wanted)]
    return [
        Case(
            picture=int(before.picture[row]),
            true=before.category.of(row),
            asked=before.asked.of(row),
            before=before.answer.of(row),
            after=after.answer.of(row),
        )
        for row in rows
    ]
