"""Two checkpoints of a sweep: which two, and how much they differ on everything that both were asked."""

from dataclasses import dataclass

from vlm.errors import ConfigError
from vlm.evaluation.bootstrap import Difference
from vlm.evaluation.sweep_report.cells import Cell, Question, Sweep
from vlm.evaluation.sweep_report.details import Detail, make_detail
from vlm.evaluation.sweep_report.rows import RowReader, difference
from vlm.evaluation.sweep_report.table import UNRANKED, comparable, overall


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one question got of two checkpoints."""

    question: Question
    metric: str
    before: float
    after: float
    num_samples: int | None
    difference: Difference | None
    """None where they have no queries in common, or no outcomes."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `same` where the difference may be chance, or `unknown`."""
        if self.difference is None:
            return "unknown"
        if not self.difference.significant:
            return "same"
        return "better" if self.difference.mean > 0 else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The second against the first."""

    baseline: str
    against: str
    changes: list[Change]
    details: list[Detail]
    num_unlike: int
    """Questions that both answered, on other data or by another metric."""

    def count(self, verdict: str) -> int:
        """How many questions have this verdict."""
        return sum(change.verdict == verdict for change in self.changes)


def choose(sweep: Sweep, *, baseline: str | None, against: str | None) -> tuple[str, str] | None:
    """Which two to compare; None where there are no two.

    What is not named: of a sweep over the steps of one run, the last two; else the best by its average, and
    the next best.

    Raises:
        ConfigError: a name is of no checkpoint of the sweep, or both are of the same.
    """
    names = [point.name for point in sweep.checkpoints]
    for key, name in (("baseline", baseline), ("against", against)):
        if name is not None and name not in names:
            raise ConfigError(f"{key}={name} is no checkpoint of the sweep; there are {', '.join(names)}")
    if baseline is not None and baseline == against:
        raise ConfigError(f"baseline and against are both {baseline}; name two checkpoints")
    after = against or next((name for name in _ranked(sweep) if name != baseline), None)
    before = baseline or next((name for name in _ranked(sweep) if name != after), None)
    return None if before is None or after is None else (before, after)


def compare(sweep: Sweep, reader: RowReader, *, baseline: str, against: str, num_pictures: int) -> Comparison:
    """The differences of all questions that both answered, the most certain first in their details.

    Args:
        num_pictures: of each question, that one of them alone got right.
    """
    changes, details, num_unlike = [], [], 0
    for question in sweep.questions:
        before, after = (sweep.cells.get((name, question)) for name in (baseline, against))
        if before is None or after is None or before.value is None or after.value is None:
            continue
        if before.main in UNRANKED:
            continue
        if not comparable(before, after):
            num_unlike += 1
            continue
        change, detail = _compare(before, after, reader, num_pictures)
        changes.append(change)
        details += [detail] if detail is not None else []
    return Comparison(
        baseline=baseline, against=against, changes=changes, details=details, num_unlike=num_unlike
    )


def _compare(before: Cell, after: Cell, reader: RowReader, num_pictures: int) -> tuple[Change, Detail | None]:
    rows = reader.read(before, before.main), reader.read(after, after.main)
    found = difference(rows[1], rows[0])
    assert before.value is not None
    assert after.value is not None
    change = Change(
        question=before.question,
        metric=before.main,
        before=before.value,
        after=after.value,
        num_samples=after.num_samples,
        difference=found,
    )
    if found is None or rows[0] is None or rows[1] is None:
        return change, None
    return change, make_detail(
        after.question, rows[0], rows[1], metric=after.main, pictures=after.pictures, wanted=num_pictures
    )


def _ranked(sweep: Sweep) -> list[str]:
    """Names, those first that are most worth a look."""
    runs = {(point.run, point.weights) for point in sweep.checkpoints}
    if len(runs) == 1 and sweep.checkpoints[0].run is not None:
        return [point.name for point in reversed(sweep.checkpoints)]
    averages = overall(sweep)
    if not averages:  # nothing that all answered: those first that answered most
        averages = {point.name: float(len(sweep.answers(point.name))) for point in sweep.answering}
    return sorted(averages, key=lambda name: -averages[name])
