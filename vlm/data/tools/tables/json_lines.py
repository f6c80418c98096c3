"""JSONL: one json object a line."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm.data.tools.tables.table import BUFFER, HEAD, Lines, Place, Row, Table, digest
from vlm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class JsonLinesTable(Table):
    """Objects whose keys are the columns.

    Args:
        start: byte at which the rows begin.
    """

    path: Path
    columns: tuple[str, ...]
    start: int = 0
    first: int = 0
    count: int | None = None

    @classmethod
    def open(cls, path: Path) -> "JsonLinesTable":
        """Collect the keys of the first lines.

        Raises:
            DataError: none of them is an object.
        """
        rows = itertools.islice(cls(path=path, columns=()).rows(), HEAD)
        columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
        if not columns:
            raise DataError(
                f"the table {path} has no json object in its first lines; each line has to be one"
            )
        return cls(path=path, columns=columns)

    @property
    def description(self) -> str:
        """The kind."""
        return "one json object a line"

    def rows(self) -> Iterator[Row]:
        """The objects as they are."""
        return (row for _, row in self._parsed())

    def places(self, image: str) -> Iterator[Place]:
        """Places and the values of a key."""
        for place, row in self._parsed():
            value = row.values.get(image)
            yield Place(place, (value.strip() or None) if isinstance(value, str) else None)

    def part(self, *, number: int, place: int, count: int) -> "JsonLinesTable":
        """Some of the rows."""
        return dataclasses.replace(self, start=place, first=number, count=count)

    def fingerprint(self) -> str:
        """Of every byte."""
        return digest(self.path)

    def _parsed(self) -> Iterator[tuple[int, Row]]:
        """The byte at which each line begins, and its row."""
        with self.path.open("rb", buffering=BUFFER) as file:
            lines = Lines(file, self.start, path=self.path)
            number, place = self.first, self.start
            for line in lines:
                if self.count is not None and number >= self.first + self.count:
                    return
                if line.strip():
                    yield place, _row(number, line)
                    number += 1
                place = lines.position


def _row(number: int, line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(number, {}, f"the line is no json: {error}")
    if not isinstance(values, dict):
        return Row(number, {}, "the line is no json object")
    return Row(number, values)
