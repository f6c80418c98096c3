"""The numbers of all cells of a sweep in one tidy table."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from filelock import FileLock

from vlm.evaluation.sweep.cell import FORMAT
from vlm.files import replacing, writing

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("checkpoint", "run")),
        ("step", pa.int64()),
        *((name, pa.string()) for name in ("weights", "dataset", "task", "language", "templates", "metric")),
        *((name, pa.float64()) for name in ("value", "low", "high", "chance")),
        ("main", pa.bool_()),
        ("num_samples", pa.int64()),
        ("seconds", pa.float64()),
        ("sha256", pa.string()),
    ]
)


def write_table(folder: Path) -> int:
    """Write `results.parquet` and `results.csv`: a row for each metric of each cell. Returns their number.

    Raises:
        OutputError: they cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "results.lock"):  # else a process that read earlier might write later
        rows = [row for cell in read_cells(folder) for row in _rows(cell)]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        with writing(folder / "results.parquet"), replacing(folder / "results.parquet") as draft:
            pq.write_table(table, draft)
        with writing(folder / "results.csv"), replacing(folder / "results.csv") as draft:
            pacsv.write_csv(table, draft)
    return len(rows)


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """The finished cells, in the order of their names; what cannot be read is left out, with a warning."""
    cells = []
    for path in sorted((folder / "cells").rglob("*.json")):
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version of vlm reads {FORMAT}")
            cells.append(content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is left out: %s; type the sweep again to have it made anew", path, error)
    return cells


def _rows(cell: dict[str, Any]) -> list[dict[str, Any]]:
    checkpoint = cell["checkpoint"]
    shared = {
        "checkpoint": checkpoint["name"],
        **{name: checkpoint[name] for name in ("run", "step", "weights", "sha256")},
        **{name: cell[name] for name in ("dataset", "task", "language", "templates", "num_samples")},
        "seconds": cell["seconds"]["total"],
    }
    rows = []
    for metric, value in cell["metrics"].items():
        low, high = cell["confidence"].get(metric, (None, None))
        own = {"metric": metric, "value": value, "low": low, "high": high}
        own |= {"chance": cell["chance"].get(metric), "main": metric == cell["main_metric"]}
        rows.append(shared | own)
    return rows
