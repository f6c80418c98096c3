"""CSV, TSV and their like."""

import csv
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.data.tools.tables.table import BUFFER, HEAD, IMAGE_SUFFIXES, Lines, Place, Row, Table, digest
from vlm.errors import ConfigError, DataError

# By name, as a shell and the command line's own grammar have uses for the characters.
_SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}


@dataclass(frozen=True, kw_only=True)
class DelimitedTable(Table):
    """Rows of cells.

    Args:
        quoted: whether quotation marks hold a cell together, or are characters like others.
        start: byte at which the rows begin.
    """

    path: Path
    columns: tuple[str, ...]
    separator: str
    quoted: bool
    start: int
    first: int = 0
    count: int | None = None

    @classmethod
    def open(cls, path: Path, *, separator: str | None) -> "DelimitedTable":
        """Find out separator, quoting and header.

        Raises:
            DataError: nothing cuts the first lines into columns.
        """
        with path.open("rb") as file:
            lines = list(itertools.islice(Lines(file, 0, path=path), HEAD))
        separator = _character(separator) if separator else _sniff(lines, path=path)
        quoted = separator != "\t" or _has_quoted_cells(lines)
        whole = cls(path=path, columns=(), separator=separator, quoted=quoted, start=0)
        rows = list(itertools.islice(whole._cells(), 2))
        cells = rows[0][1] if rows else []
        if any(cell.strip().lower().endswith(IMAGE_SUFFIXES) for cell in cells):  # a row, no header
            return dataclasses.replace(whole, columns=tuple(f"column{i + 1}" for i in range(len(cells))))
        columns = tuple(cell.strip() for cell in cells)
        if len(set(columns)) < len(columns):
            raise DataError(
                f"the table {path} has two columns of one name among {', '.join(columns)}; rename one"
            )
        start = rows[1][0] if len(rows) > 1 else path.stat().st_size
        return dataclasses.replace(whole, columns=columns, start=start)

    @property
    def description(self) -> str:
        """The separator."""
        names = {character: name for name, character in _SEPARATORS.items()}
        return f"separator {names.get(self.separator, self.separator)}"

    def rows(self) -> Iterator[Row]:
        """Cells by the names of their columns."""
        for number, (_, cells) in enumerate(self._cells(), self.first):
            problem = None
            if len(cells) != len(self.columns):
                problem = f"the row has {len(cells)} cells, the table {len(self.columns)} columns"
            yield Row(number, dict(zip(self.columns, cells, strict=False)), problem)

    def places(self, image: str) -> Iterator[Place]:
        """Places and the cells of a column."""
        column = self.columns.index(image)
        for place, cells in self._cells():
            yield Place(place, (cells[column].strip() or None) if len(cells) > column else None)

    def part(self, *, number: int, place: int, count: int) -> "DelimitedTable":
        """Some of the rows."""
        return dataclasses.replace(self, start=place, first=number, count=count)

    def fingerprint(self) -> str:
        """Of every byte."""
        return digest(self.path)

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """The byte at which each row begins, and its cells."""
        with self.path.open("rb", buffering=BUFFER) as file:
            lines = Lines(file, self.start, path=self.path)
            # strict: a quotation mark without partner would swallow rows, and nobody would know
            reader = csv.reader(
                lines,
                delimiter=self.separator,
                quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
                strict=True,
            )
            left = -1 if self.count is None else self.count
            while left:
                place = lines.position
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise DataError(
                        f"{self.path} cannot be read at the row that begins at byte {place}: {error}; is "
                        "there a quotation mark without partner? Correct the row, or write the table as JSONL"
                    ) from None
                if cells is None:
                    return
                if cells:  # an empty line has none
                    left -= 1
                    yield place, cells


def _character(separator: str) -> str:
    character = _SEPARATORS.get(separator, separator)
    if len(character) != 1:
        names = ", ".join(_SEPARATORS)
        raise ConfigError(f"separator={separator!r} has to be {names} or a single character")
    return character


def _sniff(lines: Sequence[str], *, path: Path) -> str:
    """The separator that cuts most lines into the same number of cells, at least two."""
    agreement = {separator: _agreement(lines, separator) for separator in _SEPARATORS.values()}
    best = max(agreement, key=lambda separator: agreement[separator])
    if path.suffix.lower() in (".tsv", ".tab") and agreement["\t"] > (0, 0):
        best = "\t"
    if agreement[best] == (0, 0):
        raise DataError(
            f"the table {path} is cut into columns by none of comma, tab, semicolon and bar; use one "
            "of them, or name for vlm shards pack what does, as in separator=tab"
        )
    return best


def _agreement(lines: Sequence[str], separator: str) -> tuple[int, int]:
    """How many lines have the most frequent number of cells, and this number."""
    if separator == "\t":
        rows = [line.split("\t") for line in lines if line.strip()]
    else:
        rows = list(csv.reader(lines, delimiter=separator))
    counts = [len(cells) for cells in rows if cells]
    width = max(set(counts), key=counts.count, default=1)
    return (counts.count(width), width) if width > 1 else (0, 0)


def _has_quoted_cells(lines: Sequence[str]) -> bool:
    """Tables with tabs are often written without quoting, and a caption may begin with a quotation mark."""
    cells = (cell for line in lines for cell in line.rstrip("\r\n").split("\t"))
    return any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
