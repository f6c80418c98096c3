"""Labels beside a shard: `<stem>.<name>.parquet` has a row for each of its samples, in their order.

Its column `label` is a list of class numbers, the best first; a column of single numbers is taken too. An
empty list, null and a negative number say that there is none. The metadata may have `num_classes`, and
`made_by`: what tells labels of one making from others.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer
from numpy import ndarray

from vlm.data.index import stem
from vlm.files import replacing, writing

COLUMN = "label"
_NUM_CLASSES = b"num_classes"
_MADE_BY = b"made_by"


class Origin(NamedTuple):
    """What all sidecars of one making agree in; None where they do not say."""

    num_classes: int | None
    made_by: str | None


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a shard's samples.

    Args:
        values: of all samples, one sample after another.
        ends: where the values of each sample end.
    """

    values: Integer[ndarray, "n"]
    ends: Integer[ndarray, "rows"]
    origin: Origin

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[int, ...]:
        start = self.ends[row - 1] if row else 0
        return tuple(self.values[start : self.ends[row]].tolist())

    @property
    def width(self) -> int:
        """Labels of the sample that has most."""
        return int(np.diff(self.ends, prepend=0).max(initial=0))

    @property
    def digest(self) -> str:
        """Of the labels, however a file stores them."""
        parts = (self.ends.astype("<i8").tobytes(), self.values.astype("<i8").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def sidecar_path(shard: str, name: str, *, folder: str | None = None) -> str:
    """Where the labels `name` of a shard lie: beside it, or in a folder under the same file name."""
    beside = f"{stem(shard)}.{name}.parquet"
    return beside if folder is None else f"{folder.rstrip('/')}/{beside.rpartition('/')[2]}"


def write_sidecar(path: Path, labels: Integer[ndarray, "rows m"], *, num_classes: int, made_by: str) -> None:
    """Write the labels of a shard's samples, whole or not at all.

    Args:
        path: `sidecar_path` of the shard.
        labels: classes of each sample, the best first; negative where a sample has fewer.
        made_by: the same beside every shard, and another for labels that must not be mixed with these.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    present = labels >= 0
    starts = np.concatenate([[0], np.cumsum(present.sum(1))])
    column = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(labels[present], pa.int32()))
    said = {_NUM_CLASSES: str(num_classes), _MADE_BY: made_by}
    with writing(path), replacing(path) as draft:
        pq.write_table(pa.table({COLUMN: column}).replace_schema_metadata(said), draft)


def parse_sidecar(data: bytes) -> Labels:
    """The labels in the bytes of a sidecar.

    Raises:
        ValueError: it is none, or a label is no class; the message goes on after the name of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        if COLUMN not in file.schema_arrow.names:
            raise ValueError(f"has no column {COLUMN}; it has {', '.join(file.schema_arrow.names) or 'none'}")
        column = file.read(columns=[COLUMN], use_threads=False)[COLUMN].combine_chunks()
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    counts, values = _flat(column)
    present = values >= 0
    rows = np.repeat(np.arange(len(counts)), counts)[present]
    labels = Labels(
        values=values[present],
        ends=np.cumsum(np.bincount(rows, minlength=len(counts))),
        origin=_origin(file.schema_arrow.metadata or {}),
    )
    classes, largest = labels.origin.num_classes, int(labels.values.max(initial=0))
    if classes is not None and largest >= classes:
        raise ValueError(f"has the label {largest}, beyond its {classes} classes")
    return labels


def read_footer(path: str) -> tuple[int, Origin]:
    """Rows and origin of a local sidecar, without its labels.

    Raises:
        ValueError: it is none; the message goes on after the name of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    return footer.num_rows, _origin(footer.metadata or {})


def _origin(said: dict[bytes, bytes]) -> Origin:
    num_classes, made_by = said.get(_NUM_CLASSES), said.get(_MADE_BY)
    if num_classes is not None and not num_classes.isdigit():
        raise ValueError(f"says num_classes={num_classes.decode(errors='replace')}, which is no number")
    return Origin(int(num_classes) if num_classes else None, made_by.decode() if made_by else None)


def _flat(column: Any) -> tuple[Integer[ndarray, "rows"], Integer[ndarray, "n"]]:
    """How many values each row has, and the values, one row after another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = pa.types
    if kinds.is_integer(column.type):
        counts, values = column.is_valid().cast(pa.int64()), column.drop_null()
    elif _is_list(column.type) and kinds.is_integer(column.type.value_type):
        counts, values = pc.fill_null(pc.list_value_length(column), 0), pc.list_flatten(column)
    else:
        raise ValueError(f"has {column.type} in the column {COLUMN}, not lists of whole numbers")
    if values.null_count:
        raise ValueError(f"has lists with nothing at some place in the column {COLUMN}")
    return counts.to_numpy(zero_copy_only=False), values.to_numpy(zero_copy_only=False)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
