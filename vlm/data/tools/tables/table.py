"""What every table can do."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vlm.errors import DataError

HEAD = 200
"""Rows that are looked at to find out what a table holds."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
BUFFER = 1 << 20


class Row(NamedTuple):
    """One row, and what is wrong with it."""

    number: int
    values: dict[str, Any]
    problem: str | None = None


class Place(NamedTuple):
    """Where a row begins, and what is known of its image before it is read."""

    place: int
    image: str | int | None
    """Its file; its size in bytes where the table holds the image itself; None where there is none."""


class Table(ABC):
    """Rows of named values, readable from a place in its middle."""

    path: Path
    """The file or folder."""
    columns: tuple[str, ...]

    @property
    @abstractmethod
    def description(self) -> str:
        """What kind of table it was found to be."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row in order."""

    @abstractmethod
    def places(self, image: str) -> Iterator[Place]:
        """One for each row, without reading what need not be read for it."""

    @abstractmethod
    def part(self, *, number: int, place: int, count: int) -> "Table":
        """`count` rows from the one with this number, which begins at `place`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Of the content: another content has another."""


class Lines:
    """Lines of a UTF-8 file, and the byte where the next one begins."""

    def __init__(self, file: BinaryIO, position: int, *, path: Path) -> None:
        self.position = position
        self._file = file
        self._path = path
        file.seek(position)

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        try:
            text = line.decode("utf-8-sig" if self.position == 0 else "utf-8")
        except UnicodeDecodeError as error:
            encoding = "UTF-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030"
            raise DataError(
                f"{self._path} is not UTF-8 at byte {self.position + error.start}; convert it, if it is "
                f"{encoding} with: iconv -f {encoding} -t UTF-8 {self._path.name} > utf8_{self._path.name}"
            ) from None
        self.position += len(line)
        return text


def digest(path: Path, *, start: int = 0) -> str:
    """Of a file's size, and of its bytes from `start` on."""
    value = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        file.seek(start)
        while data := file.read(BUFFER):
            value.update(data)
    return value.hexdigest()
