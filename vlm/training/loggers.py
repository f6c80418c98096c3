"""Where logged numbers go."""

import csv
import errno
import io
import logging
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from vlm.distributed import Topology
from vlm.files import replacing

log = logging.getLogger(__name__)


def _is_whole(row: Mapping[str | None, object]) -> bool:
    """Whether a row has a step, and no more cells than there are columns."""
    step = row.get("step")
    return None not in row and isinstance(step, str) and step.isdecimal() and len(step) < 20


class CsvLogger(Logger):
    """Appends to `<folder>/metrics.csv`: a column `step`, then one for each metric seen so far.

    Lightning's own CSV logger deletes the file when a run goes on; this one keeps the rows up to the first
    step that the resumed run logs. A row replaces one of the same step and kind, which the run had logged
    before it was resumed. The file holds whole lines at any time.
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
        """Add a row. Raises `OSError` where it cannot be written; the rows before it stay."""
        if step is None:
            raise ValueError("metrics need a step")
        if not Topology.current().is_main:
            return
        row = {"step": str(step), **{name: f"{value:.8g}" for name, value in metrics.items()}}
        whole = self._rows is not None
        self._rows = self._rows if self._rows is not None else self._read(until=step)
        same_step = takewhile(lambda other: other["step"] == row["step"], reversed(self._rows))
        for stale in [other for other in same_step if other.keys() & metrics.keys()]:
            self._rows.remove(stale)
            whole = False
        self._rows.append(row)
        columns = list(dict.fromkeys([*self._columns, *row]))
        if whole and columns == self._columns:
            self._append(row)
            return
        self._columns = columns
        self._rewrite()

    def _append(self, row: Mapping[str, str]) -> None:
        line = self._text([row]).encode()
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):  # what a disk does that is full but for some bytes
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise

    def _read(self, *, until: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # a machine that went down may have left half a line
        found = csv.DictReader(whole.decode("utf-8", "replace").splitlines(keepends=True))
        try:
            rows = [{k: v for k, v in row.items() if v} for row in found if _is_whole(row)]
            damaged = whole != data or len(rows) < found.line_num - 1
        except csv.Error:
            rows, damaged = [], True
        if damaged:
            kept = self.path.with_name("metrics.damaged.csv")
            shutil.copyfile(self.path, kept)
            log.warning("%s is damaged; its readable rows stay in it, %s is what it was", self.path, kept)
        rows = [row for row in rows if int(row["step"]) <= until]
        self._columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        return rows

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = dict(zip(self._columns, self._columns, strict=True))
        with replacing(self.path) as draft:
            draft.write_text(self._text([header, *(self._rows or [])]), encoding="utf-8", newline="")

    def _text(self, rows: list[Mapping[str, str]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(rows)
        return text.getvalue()


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's, except that a full disk is an `OSError` when metrics are logged.

    The library writes in a thread of its own, and Lightning makes another error of what the thread met.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        try:
            super().finalize(status)
        except OSError as error:  # the run has ended, and its own message comes first
            log.warning("%s cannot be written: %s", self.log_dir, error.strerror or error)
