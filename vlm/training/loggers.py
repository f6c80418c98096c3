"""One CSV of every logged number."""

import csv
import logging
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from vlm.distributed import Topology

log = logging.getLogger(__name__)


def _is_whole(row: Mapping[str | None, object]) -> bool:
    """Whether a row has a step, and no more cells than there are columns."""
    step = row.get("step")
    return None not in row and isinstance(step, str) and step.isdecimal() and len(step) < 20


class CsvLogger(Logger):
    """Appends to `<folder>/metrics.csv`: a column `step`, then one for each metric seen so far.

    Lightning's own CSV logger deletes the file when a run goes on; this one keeps the rows before the first
    step that the resumed run logs.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._rows: list[dict[str, str]] | None = None
        self._columns = ["step"]

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration has a file of its own."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            raise ValueError("metrics need a step")
        if not Topology.current().is_main:
            return
        if self._rows is None:
            self._rows = self._read(before=step)
            self._columns = list(dict.fromkeys(["step", *(name for row in self._rows for name in row)]))
            self._rewrite()
        row = {"step": str(step), **{name: f"{value:.8g}" for name, value in metrics.items()}}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _read(self, *, before: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        found = csv.DictReader(data.decode("utf-8", "replace").splitlines(keepends=True))
        try:
            rows = [{k: v for k, v in row.items() if v} for row in found if _is_whole(row)]
            damaged = not data.endswith(b"\n") or len(rows) < found.line_num - 1
        except csv.Error:
            rows, damaged = [], True
        if damaged:
            kept = self.path.with_name("metrics.damaged.csv")
            shutil.copyfile(self.path, kept)
            log.warning("%s is damaged; its readable rows stay in it, %s is what it was", self.path, kept)
        return [row for row in rows if int(row["step"]) < before]

    def _rewrite(self) -> None:
        draft = self.path.with_suffix(".tmp")
        draft.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows or [])
        os.replace(draft, self.path)
