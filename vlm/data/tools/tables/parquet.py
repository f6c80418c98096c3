"""Parquet, with images as paths or within the table."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.data.tools.tables.table import BUFFER, Place, Row, Table, digest
from vlm.errors import DataError

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ParquetTable(Table):
    """Rows of a Parquet file; a place is the number of a row.

    An image is a path, bytes, or a struct with `bytes` as the `datasets` library writes it. Columns that are
    neither text, numbers, lists of text nor bytes are left out.
    """

    path: Path
    columns: tuple[str, ...]
    first: int = 0
    count: int | None = None

    @classmethod
    def open(cls, path: Path) -> "ParquetTable":
        """Read the schema.

        Raises:
            DataError: it is no Parquet file.
        """
        import pyarrow as pa

        try:
            schema = cls(path=path, columns=())._file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"the table {path} is no Parquet file: {error}") from None
        return cls(path=path, columns=tuple(field.name for field in schema if _is_kept(field.type)))

    @cached_property
    def _file(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    @property
    def description(self) -> str:
        """The kind."""
        return "Parquet"

    def rows(self) -> Iterator[Row]:
        """Values by column."""
        for number, values in enumerate(self._read(self.columns), self.first):
            yield Row(number, values)

    def places(self, image: str) -> Iterator[Place]:
        """Paths, or for images within the table the mean size in their row group."""
        import pyarrow as pa

        kind = self._file.schema_arrow.field(image).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            for number, values in enumerate(self._read((image,)), self.first):
                yield Place(number, (values[image] or "").strip() or None)
        else:
            sizes = (size for group in self._groups() for size in _mean_sizes(group, image))
            yield from itertools.starmap(Place, enumerate(sizes, self.first))

    def part(self, *, number: int, place: int, count: int) -> "ParquetTable":
        """Some of the rows."""
        return dataclasses.replace(self, first=place, count=count)

    def fingerprint(self) -> str:
        """Of size and footer: in it stand sizes and statistics of all columns."""
        return digest(self.path, start=max(0, self.path.stat().st_size - BUFFER))

    def _groups(self) -> Iterator[Any]:
        return map(self._file.metadata.row_group, range(self._file.metadata.num_row_groups))

    def _read(self, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Rows `first` to `first + count`; row groups outside of them are not touched."""
        stop = self._file.metadata.num_rows if self.count is None else self.first + self.count
        start = 0
        for number, group in enumerate(self._groups()):
            end = start + group.num_rows
            if end > self.first and start < stop:
                batches = self._file.iter_batches(
                    _BATCH, row_groups=[number], columns=list(columns), use_threads=False
                )
                rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
                yield from itertools.islice(rows, max(0, self.first - start), stop - start)
            start = end


def _mean_sizes(group: Any, image: str) -> Iterator[int]:
    chunks = map(group.column, range(group.num_columns))
    own = [c for c in chunks if c.path_in_schema == image or c.path_in_schema.startswith(f"{image}.")]
    mean = sum(chunk.total_uncompressed_size for chunk in own) // max(1, group.num_rows)
    return itertools.repeat(mean, group.num_rows)


def _is_kept(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    is_list = types.is_list(kind) or types.is_large_list(kind)
    if types.is_string(text := kind.value_type if is_list else kind) or types.is_large_string(text):
        return True
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_binary, types.is_large_binary)
    return not is_list and any(test(kind) for test in tests)
