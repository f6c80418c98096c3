"""Compositional understanding: does a picture prefer what is true of it to what is almost the same."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlm.distributed import gather_objects
from vlm.errors import DataError
from vlm.evaluation.case_examples import case_examples, group_examples, pictures_of
from vlm.evaluation.case_fields import Case
from vlm.evaluation.case_scores import (
    Contest,
    GroupContests,
    Macro,
    best_threshold,
    by_category,
    group_chance,
    group_contests,
    group_metrics,
    groups_won,
    metric_of,
    share_told_right,
)
from vlm.evaluation.cases import Cases, CaseSource
from vlm.evaluation.evaluator import Result
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.evaluation.text_only import text_only_contests
from vlm.inference import Embedder

logger = logging.getLogger(__name__)

_OVERALL = ("acc", "macro_acc", "tot_acc", "macro_tot_acc", "true_false_acc")

BLOCK_ROWS = 1 << 16
"""Vectors that are compared at once."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """The distinct captions of some cases, and their vectors."""

    row: dict[str, int]
    vectors: Float[Tensor, "m d"]

    @classmethod
    def of(cls, cases: Sequence[Case], embedder: Embedder) -> "_Texts":
        captions = dict.fromkeys(text for case in cases for text in (*case.true, *case.false))
        return cls({text: row for row, text in enumerate(captions)}, embedder.texts(list(captions)).features)


@dataclass(slots=True)
class _Measured:
    """Metrics, and what guessing gets in them."""

    metrics: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)


class Compositional:
    """How often pictures and captions that differ in little find each other.

    A case, a picture with true and false captions, is won where every true caption scores above every false
    one; the metrics are `<category>_acc`, `acc` and `macro_acc`. Groups in which a caption is true of one
    picture and false of another give `text_score`, `image_score` and `group_score`. Where cases have several
    true captions, `<category>_tot_acc` is the share in which these are nearer to each other than to any false
    one, the picture unseen.

    Args:
        cases: what to score.
        tune: cases on which a threshold is chosen, from which on a caption counts as true of a picture; with
            it there is `true_false_acc`, the share of captions told right.
        macro_min_cases: categories with fewer do not count in the mean over categories.
        macro_leaves_out: categories that do not count in it either.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(
        self,
        cases: CaseSource,
        *,
        tune: CaseSource | None = None,
        macro_min_cases: int = 1,
        macro_leaves_out: Sequence[str] = (),
    ) -> None:
        self.source = cases
        self.tune = tune
        self.macro = Macro(min_cases=macro_min_cases, leaves_out=frozenset(macro_leaves_out))
        self._text_only: dict[str, float] | None = None

    def check(self) -> None:
        cases = self.source.read()
        _require_contests(cases)
        _require_distinct_names(cases)
        if self.tune is not None:
            self.tune.read()
        if cases.num_missing:
            logger.warning(
                "%d of %d cases are left out: their pictures are missing, the first is %s",
                cases.num_missing,
                cases.num_missing + len(cases.cases),
                cases.first_missing,
            )

    def __call__(self, embedder: Embedder) -> Result:
        cases, features = self.source.embed(embedder)
        _require_contests(cases)
        _require_distinct_names(cases)
        texts = _Texts.of(cases.cases, embedder)
        contests = _contests(cases, features, texts)
        notes: dict[str, int | float] = {
            "num_cases": len(cases.cases),
            "num_missing": cases.num_missing,
            "num_left_out": cases.num_left_out,
        }
        found = _Measured()
        self._measure_cases(found, cases, contests, name="acc")
        self._measure_cases(found, cases, _without_pictures(cases, texts), name="tot_acc")
        groups = _whole_groups(cases, contests)
        found.metrics |= group_metrics(groups)
        found.chance |= group_chance(groups) if groups else {}
        notes["num_groups"] = len(groups)
        if self.tune is not None:
            notes["threshold"] = self._measure_true_false(found, contests, embedder)
        counts = Counter(case.category for case in cases.cases if case.category is not None)
        examples = case_examples(cases, contests) | group_examples(cases, contests)
        shown = pictures_of(examples)
        return Result(
            task="image_caption_selection",
            metrics=found.metrics,
            chance=found.chance,
            text_only=self._of_text_alone(cases, embedder),
            num_samples=len(set(cases.picture)),
            details={
                "examples": examples,
                "counts": {metric_of(category, "acc"): count for category, count in counts.items()},
                "pictures": shown,
                "shards": self.source.pictures(),
            },
            notes=notes,
            outcomes=_outcomes(cases, contests, found.metrics, self.macro) + _of_groups(cases, groups),
        )

    def _measure_cases(
        self, found: _Measured, cases: Cases, contests: Sequence[Contest], *, name: str
    ) -> None:
        won = [contest.credit if contest.is_open else None for contest in contests]
        guessed = [contest.guess if contest.is_open else None for contest in contests]
        found.metrics |= by_category(cases.cases, won, name=name, macro=self.macro)
        found.chance |= by_category(cases.cases, guessed, name=name, macro=self.macro)

    def _measure_true_false(self, found: _Measured, contests: Sequence[Contest], embedder: Embedder) -> float:
        """The threshold that is used."""
        assert self.tune is not None
        cases, features = self.tune.embed(embedder)
        threshold = best_threshold(_contests(cases, features, _Texts.of(cases.cases, embedder)))
        found.metrics["true_false_acc"] = share_told_right(contests, threshold)
        all_true = share_told_right(contests, -torch.inf)
        found.chance["true_false_acc"] = max(all_true, 1 - all_true)
        return threshold

    def _of_text_alone(self, cases: Cases, embedder: Embedder) -> dict[str, float]:
        """Depends on no model, so that it is computed once, and by one rank for all."""
        if self._text_only is None:
            own: dict[str, float] = {}
            if embedder.topology.is_main:
                read = text_only_contests(cases.cases)
                credits = [None if contest is None else contest.credit for contest in read]
                own = by_category(cases.cases, credits, name="acc", macro=self.macro)
            self._text_only = gather_objects(own)[0]
        return self._text_only


def _preferred(case: Case, contest: Contest) -> str:
    """The false caption with the highest score if that is not below a true one, else the first true one."""
    if contest.is_won:
        return case.true[0]
    return case.false[int(np.argmax(contest.false))] if len(contest.false) == len(case.false) else ""


def _outcomes(
    cases: Cases, contests: Sequence[Contest], metrics: Mapping[str, float], macro: Macro
) -> tuple[Outcomes, ...]:
    """Of each case with true and false captions, whether it is won."""
    rows = [row for row, contest in enumerate(contests) if contest.is_open]
    if not rows:
        return ()
    won = np.array([contests[row].credit for row in rows])
    names = [cases.cases[row].category or "" for row in rows]
    values = {"acc": won} if "acc" in metrics else {}
    for category in dict.fromkeys(filter(None, names)):
        values[metric_of(category, "acc")] = np.where([name == category for name in names], won, np.nan)
    if "macro_acc" in metrics:
        counts = Counter(filter(None, names))
        counted = [name in counts and macro.counts(name, counts[name]) for name in names]
        values["macro_acc"] = np.where(counted, won, np.nan)
    return (
        outcomes(
            "case",
            values,
            picture=[cases.picture[row] for row in rows],
            category=names,
            answer=[_preferred(cases.cases[row], contests[row]) for row in rows],
            asked=[cases.cases[row].true[0] for row in rows],
            balanced=["macro_acc"],
        ),
    )


def _of_groups(cases: Cases, groups: Mapping[str, GroupContests]) -> tuple[Outcomes, ...]:
    """Of each group, whether it is won, with its first picture."""
    if not groups:
        return ()
    first: dict[str | None, int] = {}
    for case, picture in zip(cases.cases, cases.picture, strict=True):
        first.setdefault(case.group, picture)
    return (outcomes("group", groups_won(groups), picture=[first[name] for name in groups]),)


def _require_contests(cases: Cases) -> None:
    """Raise a `DataError` where nothing can be compared."""
    empty = [Contest([0.0] * len(case.true), [0.0] * len(case.false)) for case in cases.cases]
    if not any(contest.is_open for contest in empty) and not group_contests(cases.cases, empty):
        raise DataError(
            f"cases: none of {len(empty)} has both true and false captions, or a group in which a caption is "
            "true of one picture and false of another; set false_captions or group in cases.fields"
        )


def _require_distinct_names(cases: Cases) -> None:
    """Raise a `DataError` where a category's accuracy has the name of another metric."""
    owner = dict.fromkeys(_OVERALL, "the whole")
    for category in dict.fromkeys(case.category for case in cases.cases if case.category is not None):
        for name in ("acc", "tot_acc"):
            metric = metric_of(category, name)
            if metric in owner:
                raise DataError(
                    f"cases: {metric} would be a metric of the category {category!r} and of {owner[metric]}; "
                    "give the category another name"
                )
            owner[metric] = f"the category {category!r}"


def _contests(cases: Cases, features: Float[Tensor, "n d"], texts: _Texts) -> list[Contest]:
    """Cosines of each picture with its captions."""
    captions = [
        (picture, texts.row[text])
        for case, picture in zip(cases.cases, cases.picture, strict=True)
        for text in (*case.true, *case.false)
    ]
    scores = iter(_cosines(features, texts.vectors, captions))
    return [
        Contest([next(scores) for _ in case.true], [next(scores) for _ in case.false]) for case in cases.cases
    ]


def _without_pictures(cases: Cases, texts: _Texts) -> list[Contest]:
    """Cosines of the true captions of a case with each other, and with the false ones."""
    near = [[(a, b) for n, a in enumerate(case.true) for b in case.true[:n]] for case in cases.cases]
    far = [
        [(a, b) for a in case.true for b in case.false] if among else []
        for case, among in zip(cases.cases, near, strict=True)
    ]
    pairs = [pair for n, f in zip(near, far, strict=True) for pair in (*n, *f)]
    rows = [(texts.row[a], texts.row[b]) for a, b in pairs]
    scores = iter(_cosines(texts.vectors, texts.vectors, rows))
    return [
        Contest([next(scores) for _ in n], [next(scores) for _ in f]) for n, f in zip(near, far, strict=True)
    ]


def _cosines(
    first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], pairs: Sequence[tuple[int, int]]
) -> list[float]:
    """In double precision."""
    if not pairs:
        return []
    rows = torch.tensor(pairs)
    blocks = [
        (first[block[:, 0]].double() * second[block[:, 1]].double()).sum(dim=1)
        for block in torch.split(rows, BLOCK_ROWS)
    ]
    return torch.cat(blocks).tolist()


def _whole_groups(cases: Cases, contests: Sequence[Contest]) -> dict[str, GroupContests]:
    """Those that are scored: of which no picture is missing."""
    return {
        name: group
        for name, group in group_contests(cases.cases, contests).items()
        if name not in cases.broken_groups
    }
