"""Tables of images and captions: CSV, TSV, JSONL, Parquet, and folders that are read as one."""

import itertools
from pathlib import Path

from vlm.data.tools.tables.delimited import DelimitedTable
from vlm.data.tools.tables.folder import FolderTable
from vlm.data.tools.tables.json_lines import JsonLinesTable
from vlm.data.tools.tables.parquet import ParquetTable
from vlm.data.tools.tables.table import HEAD, IMAGE_SUFFIXES, Place, Row, Table
from vlm.errors import DataError

_DELIMITED = (".csv", ".tsv", ".txt", ".tab")
_JSON_LINES = (".jsonl", ".ndjson")

__all__ = ["IMAGE_SUFFIXES", "Place", "Row", "Table", "first_rows", "open_table"]


def open_table(path: Path, *, separator: str | None) -> Table:
    """Read the beginning of a table and find out how it is written.

    Args:
        separator: of a text table; None to find it out.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    if path.is_dir():
        return FolderTable.open(path)
    if not path.is_file():
        raise DataError(f"input={path} does not exist; it names a table or a folder of images")
    ending = path.suffix.lower()
    if ending == ".parquet":
        return ParquetTable.open(path)
    if ending in _JSON_LINES:
        return JsonLinesTable.open(path)
    if ending in _DELIMITED:
        return DelimitedTable.open(path, separator=separator)
    known = ", ".join((*_DELIMITED, *_JSON_LINES, ".parquet"))
    raise DataError(f"{path} is no folder, and no table to judge by its name ({known}); rename it")


def first_rows(table: Table) -> list[Row]:
    """Rows from which it is found out what the columns hold."""
    return [row for row in itertools.islice(table.rows(), HEAD) if row.problem is None]
