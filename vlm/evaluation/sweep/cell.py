"""A cell of a sweep: one question about one data set, answered by one checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm.evaluation.bootstrap import interval
from vlm.evaluation.datasets import FEW_SHOT, MAIN_METRICS
from vlm.evaluation.evaluator import Result
from vlm.evaluation.outcomes import Outcomes
from vlm.files import replacing, write_json, writing

FORMAT = 1
AGAIN = "make room and type the same command again, it goes on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Which question, and whose answer."""

    checkpoint: str
    """Its name in the sweep."""
    dataset: str
    task: str
    language: str | None
    templates: str | None

    @property
    def stem(self) -> str:
        """What its files are called, without the ending."""
        parts = (self.dataset, self.task, self.language, self.templates)
        return ".".join(part for part in parts if part is not None)

    def __str__(self) -> str:
        return " ".join([self.checkpoint, *self.stem.split(".")])

    def file(self, folder: Path, kind: str = "cells", ending: str = ".json") -> Path:
        """Where it is in a sweep's folder."""
        return folder / kind / self.checkpoint / f"{self.stem}{ending}"

    def read(self, folder: Path) -> dict[str, Any]:
        """What its file holds; nothing where there is none, or no mapping."""
        try:
            content = json.loads(self.file(folder).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def fingerprint(self, folder: Path, content: Mapping[str, Any]) -> str | None:
        """Of what the finished cell was made from; None where it is not finished.

        Args:
            content: as `read` gives it.
        """
        try:
            if content["confidence"] and not self.file(folder, ending=".outcomes.parquet").is_file():
                return None
            return str(content["fingerprint"]) if content["format"] == FORMAT else None
        except (KeyError, TypeError):
            return None

    def write(self, folder: Path, result: Result, about: Mapping[str, Any]) -> None:
        """Write a finished cell: its outcomes first, so that numbers never stand without them.

        Args:
            about: what the file says beside the result.

        Raises:
            OutputError: it cannot be written.
        """
        path, outcomes = self.file(folder), self.file(folder, ending=".outcomes.parquet")
        with writing(path, then=AGAIN):
            path.parent.mkdir(parents=True, exist_ok=True)
        if result.outcomes:
            with writing(outcomes, then=AGAIN), replacing(outcomes) as draft:
                pq.write_table(_table(result.outcomes), draft)
        named = asdict(self) | {"checkpoint": about["checkpoint"]}
        content = {
            "format": FORMAT,
            **named,
            "metrics": result.metrics,
            "main_metric": main_metric(self.task, result.metrics),
            "confidence": confidence(result.outcomes),
            "chance": result.chance,
            "text_only": dict(result.text_only),
            "notes": dict(result.notes),
            "num_samples": result.num_samples,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **about,
        }
        write_json(path, content, indent=1)
        self.forget_failure(folder)

    def forget_failure(self, folder: Path) -> None:
        """Of a cell that is finished."""
        self.file(folder, "failed").unlink(missing_ok=True)

    def write_failure(self, folder: Path, error: str) -> None:
        """Write why there is no such cell; one that was there before answered something else."""
        self.file(folder).unlink(missing_ok=True)
        self.file(folder, ending=".outcomes.parquet").unlink(missing_ok=True)
        path = self.file(folder, "failed")
        with writing(path, then=AGAIN):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "cell": asdict(self), "error": error}, indent=1)


def main_metric(task: str, metrics: dict[str, float]) -> str:
    """The one that stands for a task; of few shots that of the most, of an unknown task the first."""
    preferred = [next(reversed(metrics))] if task == FEW_SHOT else MAIN_METRICS.get(task, ())
    return next((metric for metric in preferred if metric in metrics), next(iter(metrics)))


def confidence(outcomes: tuple[Outcomes, ...]) -> dict[str, tuple[float, float]]:
    """Of each metric that is a mean over queries, the 95 % interval."""
    found = {}
    for part in outcomes:
        code = np.unique(np.asarray(part.category), return_inverse=True)[1].astype(np.int64)
        for metric, values in part.values.items():
            counts = ~np.isnan(values)
            within = code[counts] if metric in part.balanced else None
            found[metric] = interval(values[counts], within)
    return found


def _table(outcomes: tuple[Outcomes, ...]) -> pa.Table:
    parts = []
    for part in outcomes:
        count = len(part.picture)
        columns: dict[str, Any] = {
            "query": [part.query] * count,
            "picture": part.picture,
            "category": list(part.category),
            "answer": list(part.answer),
            "asked": list(part.asked),
        }
        columns |= {
            metric: pa.array(values, pa.float64(), from_pandas=True) for metric, values in part.values.items()
        }
        parts.append(pa.table(columns))
    table = pa.concat_tables(parts, promote_options="default")
    balanced = sorted({metric for part in outcomes for metric in part.balanced})
    return table.replace_schema_metadata({"vlm": json.dumps({"balanced": balanced})})
