"""A table of what was measured, to look at and to keep."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.files import writing


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rows with the same columns, and the single measurements behind them.

    Args:
        name: of the files, without extension.
        raw: what can be written as json.
        notes: sentences below the table.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    raw: Mapping[str, Any]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        cells = [list(self.rows[0]), *([_text(value) for value in row.values()] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for row in cells:
            first, *others = zip(row, widths, strict=True)
            lines.append(
                "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
            )
        return "\n".join([self.title, "", *(line.rstrip() for line in lines), "", *self.notes]).rstrip()

    def write(self, folder: Path) -> list[Path]:
        """`<name>.json` and `<name>.md` into a folder; returns both."""
        names = list(self.rows[0])
        table = [names, ["---", *["---:"] * (len(names) - 1)]]
        table += [[_text(value) for value in row.values()] for row in self.rows]
        lines = [self.title, "", *(f"| {' | '.join(row)} |" for row in table), ""]
        lines += [*(f"* {note}" for note in (*self.notes, machine())), ""]
        content = {
            "title": self.title,
            "machine": machine(),
            "notes": list(self.notes),
            "rows": [dict(row) for row in self.rows],
            "raw": self.raw,
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{self.name}.json", folder / f"{self.name}.md"]
            paths[0].write_text(json.dumps(content, indent=1), encoding="utf-8")
            paths[1].write_text("\n".join(lines), encoding="utf-8")
        return paths


def machine() -> str:
    """Where and with what it was measured, as a sentence."""
    import torch  # takes seconds to import

    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    load = f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    cores = f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads"
    return f"{gpu}{cores}; {versions}{load}."


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
