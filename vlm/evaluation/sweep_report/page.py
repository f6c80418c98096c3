"""`report.html` and `report.md` of a sweep."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vlm.evaluation.report import environment, label
from vlm.evaluation.sweep_report.cells import Cell, Sweep, read_sweep, task_title
from vlm.evaluation.sweep_report.compare import Comparison, choose, compare
from vlm.evaluation.sweep_report.curves import make_curves
from vlm.evaluation.sweep_report.markdown import markdown
from vlm.evaluation.sweep_report.pictures import read_albums
from vlm.evaluation.sweep_report.rows import RowReader
from vlm.evaluation.sweep_report.table import make_table, shown
from vlm.files import replacing, writing


def write_sweep_report(
    folder: Path,
    out: Path,
    *,
    baseline: str | None,
    against: str | None,
    averages: Mapping[str, Sequence[str]],
    shifts: Mapping[str, str],
    num_pictures: int,
) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into `out`; the page is complete in itself.

    Args:
        folder: of the sweep.
        baseline: the checkpoint that another is compared with; None for one that is worth it.
        against: the other.
        averages: data sets of an average, by its name.
        shifts: by a shifted data set, the one that it was made from.
        num_pictures: of each question, that one of the two got right and the other not, each way.

    Raises:
        ConfigError: there is no sweep, or a checkpoint or data set is none of its.
        DataError: a cell is damaged or of another format.
        OutputError: it cannot be written; what was there is unchanged.
    """
    sweep = read_sweep(folder)
    two = choose(sweep, baseline=baseline, against=against)
    reader = RowReader()
    table = make_table(sweep, reader, averages=averages, shifts=shifts)
    comparison = None
    if two is not None:
        comparison = compare(sweep, reader, baseline=two[0], against=two[1], num_pictures=num_pictures)
    made = environment()
    made.filters |= {"shown": shown, "task_title": task_title, "label": label}
    page = made.get_template("sweep_report/page.html.j2").render(
        sweep=sweep,
        name=sweep.folder.absolute().name,
        facts=_facts(sweep),
        table=table,
        choices=_choices(sweep),
        curves=make_curves(sweep),
        comparison=comparison,
        details=_with_pictures(comparison),
        widest=_widest(comparison),
        makers=_makers(sweep),
        damaged={_named(path, sweep): error for path, error in reader.damaged.items()},
    )
    return _write(out / "report.html", page), _write(out / "report.md", markdown(sweep, table))


def _write(path: Path, text: str) -> Path:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
    return path


def _facts(sweep: Sweep) -> dict[str, str]:
    """What the sweep is, in a few words a line."""
    count = len(sweep.checkpoints) * len(sweep.questions)
    left = count - len(sweep.cells) - len(sweep.failures)
    cells = [f"{len(sweep.cells):,} done"]
    cells += [f"{len(sweep.failures):,} failed"] if sweep.failures else []
    cells += [f"{left:,} missing"] if left else []
    return {
        "Checkpoints": f"{len(sweep.checkpoints):,}",
        "Data sets": f"{len(sweep.datasets):,}, asked about in {len(sweep.questions):,} ways",
        "Cells": ", ".join(cells),
        **({"Evaluated": when} if (when := _when(sweep)) else {}),
        "Folder": str(sweep.folder.absolute()),
    }


def _when(sweep: Sweep) -> str:
    """The first and the last cell."""
    times = sorted(filter(None, (_time(cell) for cell in sweep.cells.values())))
    if not times:
        return ""
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (times[0], times[-1]))
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def _time(cell: Cell) -> datetime | None:
    try:
        return datetime.fromisoformat(cell.created or "").replace(tzinfo=None)
    except ValueError:
        return None


def _choices(sweep: Sweep) -> dict[str, dict[str, str]]:
    """What the table can be narrowed to: of each key that differs, its values and their titles."""
    tasks = {question.task: task_title(question.task) for question in sweep.questions}
    languages = {str(q.language): str(q.language) for q in sweep.questions if q.language}
    templates = {str(q.templates): str(q.templates) for q in sweep.questions if q.templates}
    found = {"task": tasks, "language": languages, "templates": templates}
    return {key: values for key, values in found.items() if len(values) > 1}


def _with_pictures(comparison: Comparison | None) -> list[tuple[Any, Any]]:
    """Details of a comparison with their albums, and the greatest difference of all to draw them by."""
    if comparison is None:
        return []
    return list(zip(comparison.details, read_albums(comparison.details), strict=True))


def _widest(comparison: Comparison | None) -> float:
    """The greatest difference that an interval holds: what the others are drawn by."""
    changes = comparison.changes if comparison else []
    ends = [abs(end) for c in changes if c.difference for end in (c.difference.low, c.difference.high)]
    return max(ends, default=0.0) or 1.0


def _makers(sweep: Sweep) -> list[dict[str, Any]]:
    """What each checkpoint is, and how long it took."""
    made = []
    for point in sweep.answering:
        cells = sweep.answers(point.name)
        seconds = [cell.seconds for cell in cells if cell.seconds is not None]
        made.append(
            {
                "point": point,
                "preprocess": _in_words(cells[0].preprocess),
                "versions": _in_words(cells[0].versions),
                "cells": len(cells),
                "seconds": sum(seconds),
                "mean": sum(seconds) / len(seconds) if seconds else None,
            }
        )
    return made


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _named(path: Path, sweep: Sweep) -> str:
    return path.relative_to(sweep.folder).as_posix()
