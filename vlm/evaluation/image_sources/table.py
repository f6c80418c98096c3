"""Pictures that are rows of a table."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.data import ImageFile, ImageSet
from vlm.data.tools.columns import choose_image
from vlm.data.tools.tables import Table, open_table
from vlm.data.tools.tables.delimited import DelimitedTable
from vlm.errors import ConfigError, DataError
from vlm.evaluation.image_sources.files import folders


@dataclass(frozen=True)
class ImageTable:
    """Rows of a CSV, TSV, JSONL or Parquet file, each of which names an image file.

    `json.<column>` are the fields of a picture; a column of a CSV or TSV whose cells are all numbers holds
    numbers. Rows that name the same file are one picture, and its fields are lists with an entry for each.

    Args:
        path: the table.
        images: folder of relative paths; None: that of the table.
        image: column of the files; None: found by its name and content.

    Raises:
        ConfigError, DataError: there is no such table, column or folder; or a row is damaged or names no
            file.
    """

    path: str
    images: str | None = None
    image: str | None = None

    def read(self) -> ImageSet:
        """Its pictures, in the order in which the table names them first."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        if not os.path.exists(self.path):
            raise ConfigError(f"path={self.path}: no such table")
        table = open_table(Path(self.path), separator=None)
        (root,) = folders(self.images or str(table.path if table.path.is_dir() else table.path.parent))
        column = choose_image(table, image=self.image, root=root)
        rows: dict[str, list[dict[str, Any]]] = {}
        for values in _rows(table):
            rows.setdefault(self._name(values, column), []).append(values)
        return ImageSet(
            tuple(ImageFile(os.path.join(root, name)) for name in rows),
            [{"key": name, "json": _merged(own)} for name, own in rows.items()],
        )

    def _name(self, values: Mapping[str, Any], column: str) -> str:
        name = values.get(column)
        if isinstance(name, bytes | Mapping):
            raise DataError(
                f"path={self.path}: column {column} holds images, not their files; make shards of them by "
                f"vlm shards pack input={self.path}"
            )
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"path={self.path} has a row with {column}={name!r}, which is no name of a file")
        return name.strip()


def _rows(table: Table) -> list[dict[str, Any]]:
    found = []
    for row in table.rows():
        if row.problem is not None:
            raise DataError(f"path={table.path}, row {row.number + 1}: {row.problem}")
        found.append(row.values)
    if isinstance(table, DelimitedTable):
        for column in table.columns:
            _make_numbers(found, column)
    return found


def _make_numbers(rows: Sequence[dict[str, Any]], column: str) -> None:
    """Turn a column into numbers, where every cell that is not empty is one."""
    cells = [row[column].strip() for row in rows]
    for kind in (int, float):
        try:
            numbers = [kind(cell) if cell else None for cell in cells]
        except ValueError:
            continue
        if any(number is not None for number in numbers):
            for row, number in zip(rows, numbers, strict=True):
                row[column] = number
            return


def _merged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(rows) == 1:
        return rows[0]
    columns = dict.fromkeys(column for row in rows for column in row)
    return {column: [row.get(column) for row in rows] for column in columns}
