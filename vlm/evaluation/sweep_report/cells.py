"""What a sweep's folder holds: checkpoints, what they were asked, and the cells where both meet."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlm.errors import ConfigError, DataError
from vlm.evaluation.sweep.cell import FORMAT

logger = logging.getLogger(__name__)

T = TypeVar("T")

TASKS = {
    "zeroshot_classification": "Zero-shot classification",
    "multilabel_classification": "Several labels",
    "zeroshot_retrieval": "Retrieval",
    "image_caption_selection": "Caption choice",
    "captioning": "Captions",
    "knn": "Nearest neighbours",
    "linear_probe": "Linear probe",
    "few_shot": "Few shots",
    "pair_scoring": "Scores of pairs",
    "image_retrieval": "Pictures by pictures",
}
"""Titles, in the order of the table; others follow by their own names."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a cell asks of a checkpoint: a column of the table."""

    task: str
    dataset: str
    language: str | None = None
    templates: str | None = None

    @property
    def order(self) -> tuple[int, str, str, str, str]:
        """Sorts the columns."""
        place = list(TASKS).index(self.task) if self.task in TASKS else len(TASKS)
        return place, self.task, self.dataset, self.language or "", self.templates or ""

    def __str__(self) -> str:
        parts = [self.dataset, task_title(self.task), self.language, self.templates]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A row of the table."""

    name: str
    run: str | None
    step: int | None
    weights: str | None
    sha256: str | None
    num_parameters: int | None

    @property
    def order(self) -> tuple[str, str, int, str]:
        """Sorts the rows: the steps of a run follow each other."""
        return (
            self.run or self.name,
            self.weights or "",
            -1 if self.step is None else self.step,
            self.name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One evaluation of one checkpoint."""

    checkpoint: Checkpoint
    question: Question
    metrics: Mapping[str, float]
    main: str
    """The metric that the table shows."""
    confidence: Mapping[str, tuple[float, float]]
    chance: Mapping[str, float]
    notes: Mapping[str, Any]
    num_samples: int | None
    data_sha256: str | None
    pictures: Mapping[str, Any]
    seconds: float | None
    created: str | None
    preprocess: Mapping[str, Any]
    versions: Mapping[str, Any]
    outcomes: Path
    """Whether or not it is there."""

    @property
    def value(self) -> float | None:
        """The main metric, where it is a number."""
        value = self.metrics.get(self.main)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Rows and columns in the table's order, and what is where they cross."""

    folder: Path
    checkpoints: list[Checkpoint]
    questions: list[Question]
    cells: dict[tuple[str, Question], Cell]
    failures: dict[tuple[str, Question], str]
    """What went wrong, where there is no cell."""
    unread: list[str]
    """What is wrong with files that cannot be read."""

    @property
    def datasets(self) -> list[str]:
        """The names of the data sets, in order."""
        return sorted({question.dataset for question in self.questions})

    def column(self, question: Question) -> dict[str, Cell]:
        """The cells of a question, by checkpoint."""
        found = ((point.name, self.cells.get((point.name, question))) for point in self.checkpoints)
        return {name: cell for name, cell in found if cell is not None}

    @property
    def answering(self) -> list[Checkpoint]:
        """Checkpoints with a finished cell."""
        names = {name for name, _ in self.cells}
        return [point for point in self.checkpoints if point.name in names]

    def answers(self, checkpoint: str) -> list[Cell]:
        """The cells of a checkpoint."""
        return [cell for (name, _), cell in self.cells.items() if name == checkpoint]

    def answered_by_all(self) -> list[Question]:
        """Those that every checkpoint with a finished cell answered with a number."""
        return [
            question
            for question in self.questions
            if sum(cell.value is not None for cell in self.column(question).values()) == len(self.answering)
        ]


def read_sweep(folder: Path) -> Sweep:
    """What `vlm sweep` has written so far.

    Raises:
        ConfigError: there is no such folder, or no sweep in it.
        DataError: no cell can be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"sweep={folder} is no folder; name the out=FOLDER of vlm sweep")
    unread: list[str] = []
    cells = list(_each(folder / "cells", lambda path: _cell(path, folder), unread))
    if unread and not cells:
        raise DataError(unread[0])
    if not cells:
        raise ConfigError(
            f"sweep={folder} holds no finished cell (cells/<checkpoint>/<data set>.<task>.json); "
            f"{_found_instead(folder)}"
        )
    by_place = {(cell.checkpoint.name, cell.question): cell for cell in cells}
    failed = list(_each(folder / "failed", lambda path: _failure(path, folder / "failed"), unread))
    failures = {place: error for place, error in failed if place not in by_place}
    return Sweep(
        folder=folder,
        checkpoints=_checkpoints(cells, (name for name, _ in failures)),
        questions=sorted({question for _, question in [*by_place, *failures]}, key=lambda one: one.order),
        cells=by_place,
        failures=failures,
        unread=unread,
    )


def _each(folder: Path, read: Callable[[Path], T], unread: list[str]) -> Iterator[T]:
    """What is in the files of a folder; one that is damaged does not hide the others."""
    for path in sorted(folder.rglob("*.json")):
        try:
            yield read(path)
        except DataError as error:
            logger.warning("%s", error)
            unread.append(str(error))


def task_title(task: str) -> str:
    """A task in words."""
    return TASKS.get(task, task.replace("_", " ").capitalize())


def _found_instead(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "it is empty"
    return f"there are {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}"


def _checkpoints(cells: Iterable[Cell], failed: Iterable[str]) -> list[Checkpoint]:
    """Each once; those that failed everywhere are known by their name alone."""
    found = {cell.checkpoint.name: cell.checkpoint for cell in cells}
    unknown = {"run": None, "step": None, "weights": None, "sha256": None, "num_parameters": None}
    for name in failed:
        found.setdefault(name, Checkpoint(name=name, **unknown))
    return sorted(found.values(), key=lambda point: point.order)


def _cell(path: Path, folder: Path) -> Cell:
    content = _read(path)
    if content.get("format") != FORMAT:
        raise DataError(
            f"sweep: {path} is of format {content.get('format')!r}, and this version reads format {FORMAT}; "
            "run vlm sweep into another folder"
        )
    try:
        return _parsed(content, path, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged: {error}"
        raise DataError(f"sweep: {path} {said}; delete it and run vlm sweep again") from error


def _parsed(content: dict[str, Any], path: Path, folder: Path) -> Cell:
    point, confidence = content["checkpoint"], content.get("confidence") or {}
    pictures = content.get("pictures") or {}
    if "list" in pictures:
        pictures = {"list": str(folder / pictures["list"])}
    return Cell(
        checkpoint=Checkpoint(
            name=point["name"],
            run=point.get("run"),
            step=point.get("step"),
            weights=point.get("weights"),
            sha256=point.get("sha256"),
            num_parameters=point.get("num_parameters"),
        ),
        question=_question(content),
        metrics={name: float(value) for name, value in content["metrics"].items() if value is not None},
        main=content["main_metric"],
        confidence={name: (float(low), float(high)) for name, (low, high) in confidence.items()},
        chance=content.get("chance") or {},
        notes=content.get("notes") or {},
        num_samples=content.get("num_samples"),
        data_sha256=content.get("data_sha256"),
        pictures=pictures,
        seconds=(content.get("seconds") or {}).get("total"),
        created=content.get("created"),
        preprocess=content.get("preprocess") or {},
        versions=content.get("versions") or {},
        outcomes=path.with_suffix(".outcomes.parquet"),
    )


def _failure(path: Path, root: Path) -> tuple[tuple[str, Question], str]:
    content = _read(path)
    name = path.parent.relative_to(root).as_posix()
    try:
        return (name, _question(content["cell"])), str(content["error"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"sweep: {path} is damaged: {error}; delete it and run vlm sweep again") from error


def _question(content: Mapping[str, Any]) -> Question:
    return Question(
        task=content["task"],
        dataset=content["dataset"],
        language=content.get("language"),
        templates=content.get("templates"),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"sweep: {path} cannot be read: {error}; delete it and run vlm sweep again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"sweep: {path} is no cell; delete it and run vlm sweep again")
    return content
