"""The big table: every checkpoint against everything it was asked, averages, and changes under shift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vlm import charts
from vlm.errors import ConfigError
from vlm.evaluation.report import label
from vlm.evaluation.sweep_report.cells import Cell, Checkpoint, Question, Sweep, task_title
from vlm.evaluation.sweep_report.rows import RowReader, difference

_CORRELATIONS = frozenset({"kendall_tau_b", "kendall_tau_c", "spearman"})
_NO_SHARES = frozenset({"CIDEr", "perplexity", "mean_length", "error", "clip_score"}) | _CORRELATIONS
"""Metrics of another scale, which no average over data sets takes in."""

UNRANKED = frozenset({"clip_score"})
"""Metrics of which more is not better: a model whose cosines are all high has a high CLIPScore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a column of the table holds."""

    group: str
    """The heading that it shares with its neighbours."""
    title: str
    about: list[str]
    """Smaller, beneath."""
    explained: str
    metric: str | None = None
    """Of a column of cells."""
    question: Question | None = None
    signed: bool = False
    """Whether a value is a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What stands where a row and a column cross; nothing where nothing was measured."""

    value: float | None = None
    confidence: tuple[float, float] | None = None
    best: bool = False
    tied: bool = False
    """Not significantly worse than the best of its column."""
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Heads, and an entry for each of them in each row."""

    heads: list[Head]
    rows: list[tuple[Checkpoint, list[Entry]]]
    chance: list[float | None]
    remarks: list[str]
    """What a reader has to know of the columns."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings that columns share, and how many stand under each."""
        found: list[tuple[str, int]] = []
        for head in self.heads:
            before = found.pop() if found and found[-1][0] == head.group else (head.group, 0)
            found.append((head.group, before[1] + 1))
        return found


Column = tuple[Head, list[Entry]]


def make_table(
    sweep: Sweep,
    reader: RowReader,
    *,
    averages: Mapping[str, Sequence[str]],
    shifts: Mapping[str, str],
) -> Table:
    """Averages first, then changes under shift, then a column for each question.

    Args:
        averages: data sets of an average, by its name.
        shifts: by a shifted data set, the one that it was made from.

    Raises:
        ConfigError: an average or a shift names no data set of the sweep.
    """
    columns = [*_averages(sweep, averages), *_shifts(sweep, shifts)]
    columns += [_cells(sweep, question, reader) for question in sweep.questions]
    entries = [list(row) for row in zip(*(entries for _, entries in columns), strict=True)]
    heads = [head for head, _ in columns]
    return Table(
        heads=heads,
        rows=list(zip(sweep.checkpoints, entries, strict=True)),
        chance=[_chance(sweep, head) for head in heads],
        remarks=_remarks(sweep),
    )


def overall(sweep: Sweep) -> dict[str, float]:
    """The mean of the main metrics of what all checkpoints were asked, by checkpoint; empty without any."""
    shared = [question for question in sweep.answered_by_all() if _is_share(sweep, question)]
    if not shared:
        return {}
    return {
        point.name: fmean(_value(sweep, point, question) for question in shared) for point in sweep.answering
    }


def _averages(sweep: Sweep, named: Mapping[str, Sequence[str]]) -> list[Column]:
    shared = [question for question in sweep.answered_by_all() if _is_share(sweep, question)]
    columns = [_average(sweep, "all", shared)]
    columns += [_average(sweep, name, found) for name, found in _kinds(shared).items()]
    columns += [_named_average(sweep, name, datasets) for name, datasets in named.items()]
    return [column for column in columns if column is not None]


def _kinds(shared: Sequence[Question]) -> dict[str, list[Question]]:
    """By task and by language, where there are several."""
    tasks, languages = ({q.task: None for q in shared}, {q.language: None for q in shared if q.language})
    kinds: dict[str, list[Question]] = {}
    if len(tasks) > 1:
        kinds |= {task_title(task): [q for q in shared if q.task == task] for task in tasks}
    if len(languages) > 1:
        kinds |= {str(name): [q for q in shared if q.language == name] for name in languages}
    return {name: found for name, found in kinds.items() if len(found) > 1}  # of one it is that column


def _average(sweep: Sweep, title: str, questions: Sequence[Question]) -> Column | None:
    if len(questions) < 2:
        return None
    values = [
        fmean(_value(sweep, point, question) for question in questions) if point in sweep.answering else None
        for point in sweep.checkpoints
    ]
    told = f"mean of the main metrics of {len(questions)} columns, those that every checkpoint has"
    head = Head(group="Average", title=title, about=[f"{len(questions)} columns"], explained=told)
    return head, _with_best(values)


def _named_average(sweep: Sweep, name: str, datasets: Sequence[str]) -> Column:
    """Each data set counts once, in however many languages it was asked about."""
    asked = {
        dataset: [q for q in sweep.questions if q.dataset == dataset and _is_share(sweep, q)]
        for dataset in datasets
    }
    there = {dataset: questions for dataset, questions in asked.items() if questions}
    if not there:
        raise ConfigError(
            f"averages.{name} names no data set of the sweep; there are {', '.join(sweep.datasets)}"
        )
    values = []
    for point in sweep.checkpoints:
        found = [
            [sweep.cells.get((point.name, question)) for question in questions]
            for questions in there.values()
        ]
        values.append(_mean_of_means(found))
    told = f"mean over {', '.join(there)}"
    if lacking := [dataset for dataset in datasets if dataset not in there]:
        told += f"; not in this sweep: {', '.join(lacking)}"
    about = f"{len(there)} of {len(datasets)} data sets" if lacking else f"{len(there)} data sets"
    return Head(group="Average", title=name, about=[about], explained=told), _with_best(values)


def _mean_of_means(cells: Sequence[Sequence[Cell | None]]) -> float | None:
    """None where a value is missing: a mean of fewer is no mean of the same."""
    values = [[cell.value if cell else None for cell in some] for some in cells]
    if any(value is None for some in values for value in some):
        return None
    return fmean(fmean(value for value in some if value is not None) for some in values)


def _shifts(sweep: Sweep, shifts: Mapping[str, str]) -> list[Column]:
    for shifted, base in shifts.items():
        for name in (shifted, base):
            if name not in sweep.datasets:
                raise ConfigError(
                    f"shifts: {shifted}: {base} names {name}, which the sweep does not have; there are "
                    f"{', '.join(sweep.datasets)}"
                )
    columns = []
    for question in sweep.questions:
        if question.dataset in shifts:
            before = Question(question.task, shifts[question.dataset], question.language, question.templates)
            columns += [_shift(sweep, question, before)] if before in sweep.questions else []
    return columns


def _shift(sweep: Sweep, shifted: Question, base: Question) -> Column:
    values: list[float | None] = []
    for point in sweep.checkpoints:
        after, before = sweep.cells.get((point.name, shifted)), sweep.cells.get((point.name, base))
        if after is None or before is None or after.value is None or after.main not in before.metrics:
            values.append(None)
        else:
            values.append(after.value - before.metrics[after.main])
    head = Head(
        group="Change under shift",
        title=shifted.dataset,
        about=[f"less {base.dataset}", *_asked_in(shifted)],
        explained=f"{shifted} less {base.dataset}",
        signed=True,
    )
    return head, _with_best(values)


def _cells(sweep: Sweep, question: Question, reader: RowReader) -> Column:
    column = sweep.column(question)
    values = [column[point.name].value if point.name in column else None for point in sweep.checkpoints]
    metric = _metric(column)
    entries = [Entry(value=value) for value in values] if metric in UNRANKED else _with_best(values)
    best = next((n for n, entry in enumerate(entries) if entry.best), None)
    tied = _tied(column, sweep.checkpoints[best].name, reader) if best is not None else set()
    head = Head(
        group=task_title(question.task),
        title=question.dataset,
        about=[*_asked_in(question), *([label(metric)] if metric else [])],
        explained=f"{question}: {metric or 'nothing measured'}",
        metric=metric,
        question=question,
    )
    return head, [
        _entry(entry, column.get(point.name), sweep.failures.get((point.name, question)), point.name in tied)
        for point, entry in zip(sweep.checkpoints, entries, strict=True)
    ]


def _asked_in(question: Question) -> list[str]:
    return [part for part in (question.language, question.templates) if part]


def _entry(entry: Entry, cell: Cell | None, failed: str | None, tied: bool) -> Entry:
    confidence = cell.confidence.get(cell.main) if cell else None
    return Entry(
        value=entry.value,
        confidence=confidence,
        best=entry.best,
        tied=tied and not entry.best,
        failed=failed,
    )


def _tied(column: Mapping[str, Cell], best: str, reader: RowReader) -> set[str]:
    """Checkpoints of a column whose difference to the best may be chance; its rows are read once."""
    first = column[best]
    rows = reader.read(first, first.main)
    tied = set()
    for name, cell in column.items():
        if name == best or rows is None or not comparable(cell, first):
            continue
        found = difference(rows, reader.read(cell, cell.main))
        if found is not None and not found.significant:
            tied.add(name)
    return tied


def comparable(a: Cell, b: Cell) -> bool:
    """Whether two cells measured the same metric on the same data."""
    return a.main == b.main and a.data_sha256 == b.data_sha256


def _with_best(values: Sequence[float | None]) -> list[Entry]:
    """The highest are marked, if there is another that is lower."""
    known = [value for value in values if value is not None]
    best = max(known) if known and max(known) > min(known) else None
    return [Entry(value=value, best=value is not None and value == best) for value in values]


def _metric(column: Mapping[str, Cell]) -> str | None:
    return next((cell.main for cell in column.values()), None)


def _is_share(sweep: Sweep, question: Question) -> bool:
    metric = _metric(sweep.column(question))
    return metric is not None and is_share(metric)


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric not in _NO_SHARES and not metric.endswith("rank")


def shown(value: float, metric: str | None = None, *, signed: bool = False) -> str:
    """A share in percent with one decimal and no sign of it; other metrics by their digits.

    Args:
        metric: None for an average of shares.
        signed: for differences.
    """
    if metric is not None and not is_share(metric):
        text = charts.number(value)
        return f"+{text}" if signed and value > 0 else text.replace("-", "\N{MINUS SIGN}")
    return f"{100 * value:{'+' if signed else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def _value(sweep: Sweep, point: Checkpoint, question: Question) -> float:
    value = sweep.cells[point.name, question].value
    assert value is not None
    return value


def _chance(sweep: Sweep, head: Head) -> float | None:
    """What guessing gets; all checkpoints guess alike."""
    if head.question is None or head.metric is None:
        return None
    found = (cell.chance.get(head.metric) for cell in sweep.column(head.question).values())
    return next((value for value in found if value is not None), None)


def _remarks(sweep: Sweep) -> list[str]:
    remarks = [f"{error}." for error in sweep.unread]
    for question in sweep.questions:
        cells = sweep.column(question).values()
        if len({cell.data_sha256 for cell in cells}) > 1:
            remarks.append(
                f"{question}: the data changed between the cells of this column, which are not compared."
            )
        if len({cell.main for cell in cells}) > 1:
            remarks.append(f"{question}: its cells have different main metrics, which are not compared.")
    return remarks
