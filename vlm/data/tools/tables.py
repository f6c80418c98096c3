"""Tables of images and captions: CSV, TSV, JSONL, Parquet, and folders that are read as one.

Every table can be read from a place in its middle, so that processes share one out without reading it whole.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vlm.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl")
_HEAD = 200
_SEPARATORS = (",", "\t", ";", "|")
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_BATCH = 256
_CHUNK = 1 << 20


class Row(NamedTuple):
    """One row, or what is wrong with it."""

    number: int
    values: dict[str, Any]
    problem: str | None = None


class Place(NamedTuple):
    """Where a row begins, and what is known of its image before it is read."""

    place: int
    image: str | int | None
    """Its file, or its size in bytes where the table holds the image itself, or None where there is none."""


class Table(Protocol):
    """Rows of named values."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values."""

    @property
    def description(self) -> str:
        """What kind of table it was found to be."""

    def rows(self) -> Iterator[Row]:
        """Every row in order."""

    def places(self, image: str) -> Iterator[Place]:
        """Every row again, without reading what need not be read."""

    def part(self, *, number: int, place: int, count: int) -> "Table":
        """`count` rows from the row of this number, which begins at `place`."""

    def fingerprint(self) -> str:
        """Of the content: another table has another."""


def open_table(path: Path, *, separator: str | None) -> Table:
    """Read the beginning of a table and find out how it is written.

    Args:
        separator: None to find it out.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    if path.is_dir():
        return FolderTable.open(path)
    if not path.is_file():
        raise DataError(f"input={path} does not exist; it names a table or a folder of images")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetTable(path=path)
    if suffix in _JSON_SUFFIXES:
        return JsonTable.open(path)
    if suffix in _TEXT_SUFFIXES:
        return DelimitedTable.open(path, separator=separator)
    known = ", ".join((*_TEXT_SUFFIXES, *_JSON_SUFFIXES, ".parquet"))
    raise DataError(f"input={path} is no table that is known by its name ({known}) and no folder; rename it")


def head(table: Table) -> list[Row]:
    """The first rows, as far as they are in order."""
    return [row for row in itertools.islice(table.rows(), _HEAD) if row.problem is None]


class _Lines:
    """Lines of a UTF-8 file, and the byte where the next one begins."""

    def __init__(self, path: Path, position: int) -> None:
        self._path = path
        self._file = path.open("rb", buffering=_CHUNK)
        self._file.seek(position)
        self.position = position

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            self._file.close()
            raise StopIteration
        try:
            text = line.decode("utf-8-sig" if self.position == 0 else "utf-8")
        except UnicodeDecodeError as error:
            encoding = "UTF-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030"
            raise DataError(
                f"{self._path} is not UTF-8 at byte {self.position + error.start}; convert it first: "
                f"iconv -f {encoding} -t UTF-8 {self._path.name} > utf8{self._path.suffix} (if it is {encoding})"
            ) from None
        self.position += len(line)
        return text


@dataclass(frozen=True, kw_only=True)
class DelimitedTable:
    """CSV and TSV.

    Args:
        quoted: whether quotation marks hold cells together, or are characters like others.
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
        """Find out separator, quoting and header."""
        lines = list(itertools.islice(_Lines(path, 0), _HEAD))
        if not lines:
            raise DataError(f"input={path} is empty")
        separator = _given_separator(separator) if separator else _sniff(lines)
        # Tables with tabs are often written without any quoting, and a caption may begin with a quotation mark.
        cells = [cell for line in lines for cell in line.rstrip("\r\n").split("\t")]
        quoted = separator != "\t" or any(len(c) > 1 and c[0] == c[-1] == '"' for c in cells)
        whole = cls(path=path, columns=(), separator=separator, quoted=quoted, start=0)
        cells = next(whole._cells())[1]
        if any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in cells):  # a row, no header
            return dataclasses.replace(whole, columns=tuple(f"column{i}" for i in range(1, len(cells) + 1)))
        if len(set(cells)) < len(cells):
            raise DataError(f"input={path} has two columns of one name in {', '.join(cells)}; rename one")
        start = next(itertools.islice(whole._cells(), 1, 2), (path.stat().st_size, []))[0]
        return dataclasses.replace(whole, columns=tuple(cell.strip() for cell in cells), start=start)

    @property
    def description(self) -> str:
        """Kind and separator."""
        return f"separator {'tab' if self.separator == chr(9) else self.separator!r}"

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
            yield Place(place, cells[column].strip() or None if len(cells) > column else None)

    def part(self, *, number: int, place: int, count: int) -> "DelimitedTable":
        """Some of the rows."""
        return dataclasses.replace(self, start=place, first=number, count=count)

    def fingerprint(self) -> str:
        """Of every byte."""
        return _digest(self.path)

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        lines = _Lines(self.path, self.start)
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        # strict: a quotation mark without partner would swallow rows, and nobody would know
        reader = csv.reader(lines, delimiter=self.separator, quoting=quoting, strict=True)
        left = itertools.count() if self.count is None else range(self.count)
        for _ in left:
            place, cells = lines.position, self._next(reader, lines)
            while cells == []:  # an empty line
                place, cells = lines.position, self._next(reader, lines)
            if cells is None:
                return
            yield place, cells

    def _next(self, reader: Iterator[list[str]], lines: _Lines) -> list[str] | None:
        place = lines.position
        try:
            return next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{self.path} cannot be read at the row that begins at byte {place}: {error}; a quotation mark "
                "without partner? Correct that row, or write the table as JSONL or Parquet"
            ) from None


@dataclass(frozen=True, kw_only=True)
class JsonTable:
    """One json object a line."""

    path: Path
    columns: tuple[str, ...]
    start: int = 0
    first: int = 0
    count: int | None = None

    @classmethod
    def open(cls, path: Path) -> "JsonTable":
        """Collect the keys of the first lines."""
        rows = [row for row in itertools.islice(cls(path=path, columns=()).rows(), _HEAD)]
        columns = dict.fromkeys(name for row in rows for name in row.values)
        if not columns:
            raise DataError(f"input={path} has no json object in its first lines; each line has to be one")
        return cls(path=path, columns=tuple(columns))

    @property
    def description(self) -> str:
        """The kind."""
        return "one json object a line"

    def rows(self) -> Iterator[Row]:
        """The objects as they are."""
        for number, (_, line) in enumerate(self._lines(), self.first):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Row(number, {}, f"the line is no json: {error}")
                continue
            known = isinstance(values, dict)
            yield Row(number, values if known else {}, None if known else "the line is no json object")

    def places(self, image: str) -> Iterator[Place]:
        """Places and the values of a key."""
        for (place, _), row in zip(self._lines(), self.rows(), strict=True):
            value = row.values.get(image)
            yield Place(place, value.strip() or None if isinstance(value, str) else None)

    def part(self, *, number: int, place: int, count: int) -> "JsonTable":
        """Some of the rows."""
        return dataclasses.replace(self, start=place, first=number, count=count)

    def fingerprint(self) -> str:
        """Of every byte."""
        return _digest(self.path)

    def _lines(self) -> Iterator[tuple[int, str]]:
        lines = _Lines(self.path, self.start)

        def filled() -> Iterator[tuple[int, str]]:
            place = lines.position
            for line in lines:
                if line.strip():
                    yield place, line
                place = lines.position

        return itertools.islice(filled(), self.count)


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """Parquet; images as paths, as bytes, or as the `bytes` and `path` of the `datasets` library."""

    path: Path
    first: int = 0
    count: int | None = None

    @cached_property
    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"input={self.path} is no Parquet file: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _parquet_part, (self.path, self.first, self.count)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the top level."""
        return tuple(self._file.schema_arrow.names)

    @property
    def description(self) -> str:
        """The kind."""
        return "Parquet"

    def rows(self) -> Iterator[Row]:
        """Text, numbers, lists of text, and images; other columns are left out."""
        columns = [field.name for field in self._file.schema_arrow if _is_kept(field.type)]
        for number, values in enumerate(self._read(columns), self.first):
            yield Row(number, values)

    def places(self, image: str) -> Iterator[Place]:
        """Row numbers and paths, or the mean size of the images of a row group."""
        import pyarrow as pa

        kind = self._file.schema_arrow.field(image).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            for number, values in enumerate(self._read([image]), self.first):
                yield Place(number, (values[image] or "").strip() or None)
            return
        number = self.first
        for group in map(self._file.metadata.row_group, range(self._file.metadata.num_row_groups)):
            chunks = map(group.column, range(group.num_columns))
            chunks = (c for c in chunks if c.path_in_schema == image or c.path_in_schema.startswith(f"{image}."))
            mean = sum(chunk.total_uncompressed_size for chunk in chunks) // max(1, group.num_rows)
            for _ in range(group.num_rows):
                yield Place(number, mean)
                number += 1

    def part(self, *, number: int, place: int, count: int) -> "ParquetTable":
        """Some of the rows."""
        return ParquetTable(path=self.path, first=place, count=count)

    def fingerprint(self) -> str:
        """Of size and footer, in which sizes and statistics of all columns stand."""
        return _digest(self.path, start=max(0, self.path.stat().st_size - _CHUNK))

    def _read(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        metadata, start = self._file.metadata, 0
        stop = metadata.num_rows if self.count is None else self.first + self.count
        for group in range(metadata.num_row_groups):
            end = start + metadata.row_group(group).num_rows
            if end > self.first and start < stop:
                yield from itertools.islice(
                    self._read_group(group, columns), max(0, self.first - start), stop - start
                )
            start = end

    def _read_group(self, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
        batches = self._file.iter_batches(
            _BATCH, row_groups=[group], columns=columns, use_threads=False
        )
        for batch in batches:
            yield from batch.to_pylist()


@dataclass(frozen=True, kw_only=True)
class FolderTable:
    """Image files with `<stem>.txt`, `<stem>.json` or both beside them, subfolders included.

    The columns are `image` (the path within the folder), `txt` and the keys of the json.
    """

    path: Path
    columns: tuple[str, ...]
    files: tuple[tuple[str, bool, bool], ...]
    """Path of each image, and whether a txt and a json lie beside it."""
    first: int = 0

    @classmethod
    def open(cls, path: Path) -> "FolderTable":
        """List the images."""
        files = tuple(_list_images(path))
        if not files:
            tables = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _TABLES)
            hint = f"; did you mean input={path / tables[0]}?" if tables else ""
            raise DataError(f"input={path} holds no images ({', '.join(IMAGE_SUFFIXES)}){hint}")
        table = cls(path=path, columns=(), files=files)
        columns = dict.fromkeys(name for row in head(table) for name in row.values)
        return dataclasses.replace(table, columns=tuple(columns))

    @property
    def description(self) -> str:
        """The kind."""
        return "a folder of images"

    def rows(self) -> Iterator[Row]:
        """Paths and the content of the files beside them."""
        for number, (image, has_text, has_json) in enumerate(self.files, self.first):
            stem = self.path / os.path.splitext(image)[0]
            try:
                values = _read_object(Path(f"{stem}.json")) if has_json else {}
                values["image"] = image
                if has_text:
                    values["txt"] = Path(f"{stem}.txt").read_text("utf-8-sig").strip()
            except (OSError, ValueError, RecursionError) as error:
                yield Row(number, {"image": image}, f"what lies beside it cannot be read: {error}")
            else:
                yield Row(number, values)

    def places(self, image: str) -> Iterator[Place]:
        """Positions and paths."""
        for number, (name, _, _) in enumerate(self.files, self.first):
            yield Place(number, name)

    def part(self, *, number: int, place: int, count: int) -> "FolderTable":
        """Some of the images."""
        files = self.files[place - self.first : place - self.first + count]
        return dataclasses.replace(self, files=files, first=number)

    def fingerprint(self) -> str:
        """Of the names."""
        return hashlib.sha256(repr(self.files).encode("utf-8", "backslashreplace")).hexdigest()


_TABLES = (*_TEXT_SUFFIXES, *_JSON_SUFFIXES, ".parquet")


def _parquet_part(path: Path, first: int, count: int | None) -> ParquetTable:
    return ParquetTable(path=path, first=first, count=count)


def _given_separator(separator: str) -> str:
    separator = {"tab": "\t", "\\t": "\t"}.get(separator, separator)
    if len(separator) != 1:
        raise ConfigError(f"separator={separator!r} has to be one character, or 'tab'")
    return separator


def _sniff(lines: Iterable[str]) -> str:
    """The separator that cuts most lines into the same number of cells, at least two."""
    lines = list(lines)

    def agreement(separator: str) -> tuple[int, int]:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=separator) if cells]
        except csv.Error:
            return 0, 0
        width = counts[0] if counts else 1
        return (sum(count == width for count in counts), width) if width > 1 else (0, 0)

    best = max(_SEPARATORS, key=agreement)
    if agreement(best) == (0, 0):
        raise DataError(
            f"no separator (comma, tab, semicolon, bar) cuts the first line {lines[0].strip()[:80]!r} into "
            "columns; name it by separator=, as in separator=tab"
        )
    return best


def _is_kept(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    text = kind.value_type if is_list else kind
    if pa.types.is_string(text) or pa.types.is_large_string(text):
        return True
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    tests += (pa.types.is_binary, pa.types.is_large_binary)
    return not is_list and any(test(kind) for test in tests)


def _read_object(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no json object")
    return values


def _list_images(folder: Path) -> Iterator[tuple[str, bool, bool]]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        present = set(names)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                path = os.path.relpath(os.path.join(where, name), folder)
                yield path, f"{stem}.txt" in present, f"{stem}.json" in present


def _digest(path: Path, *, start: int = 0) -> str:
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        file.seek(start)
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
