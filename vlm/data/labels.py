"""The labels of a source's samples: their `cls` members, or sidecars that lie beside the shards.

The column `label` of a sidecar is a list of class numbers, the best first; a column of single numbers is
taken too. An empty list, null and a negative number say that there is none. The metadata may have
`num_classes`, and `made_by`: what tells labels of one making from others.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer
from numpy import ndarray

from vlm.broken import Cause
from vlm.data.samples import BrokenSampleError
from vlm.data.shards import ShardSet
from vlm.data.sidecar import Sidecars, check_name
from vlm.data.sources import Source
from vlm.errors import ConfigError
from vlm.files import replacing, writing

CLS = "cls"
"""The member that holds a class, and the value of `labels` that names it."""

COLUMN = "label"
_NUM_CLASSES = b"num_classes"
_MADE_BY = b"made_by"
_LARGEST = (1 << 63) - 1


class Origin(NamedTuple):
    """What all sidecars of one making agree in; None where they do not say."""

    num_classes: int | None
    made_by: str | None

    @classmethod
    def of(cls, said: Mapping[bytes, bytes]) -> "Origin":
        """What the metadata of a sidecar says; raises a ValueError as `parse_sidecar`."""
        num_classes, made_by = said.get(_NUM_CLASSES), said.get(_MADE_BY)
        if num_classes is not None and not num_classes.isdigit():
            raise ValueError(f"says num_classes={num_classes.decode(errors='replace')}, which is no number")
        return cls(int(num_classes) if num_classes else None, made_by.decode() if made_by else None)


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


def class_of(record: Mapping[str, Any]) -> tuple[int, ...]:
    """The class in a sample's `cls`; nothing where it has none, or a negative one.

    Raises:
        BrokenSampleError: no tensor can hold it.
    """
    number: int = record.get(CLS, -1)
    if number > _LARGEST:
        raise BrokenSampleError(f"its cls is no class: {str(number)[:20]}…", Cause.UNREADABLE_TEXT)
    return (number,) if number >= 0 else ()


def check_labels(source: Source, *, key: str) -> None:
    """Check that the name of sidecars is one, and that further keys have sidecars to be about.

    Raises:
        ConfigError: they contradict each other, or a number is out of range.
    """
    if source.labels is not None:
        check_name(source.labels, key=f"{key}.labels", folder=f"{key}.labels_from", instead=CLS)
    for name, without in (("labels_from", None), ("labels_per_sample", 1)):  # a cls is one label
        if source.labels in (None, CLS) and getattr(source, name) not in (None, without):
            raise ConfigError(
                f"{key}.{name}={getattr(source, name)} is for labels in sidecars, and {key}.labels="
                f"{source.labels or 'null'}; set it to null"
            )
    if source.labels_per_sample is not None and source.labels_per_sample < 1:
        raise ConfigError(f"{key}.labels_per_sample={source.labels_per_sample} must be at least 1, or null")


class LabelSidecars(Sidecars[Labels]):
    """Labels that lie beside the shards of a source.

    Args:
        per_sample: labels that are taken of each sample, the first; None: as many as the first shard's
            samples have at most, and more are an error.

    The others are those of `Sidecars`.
    """

    what = "labels"
    instead = CLS
    width: int
    """Labels of a sample at most."""

    def __init__(
        self, shards: ShardSet, name: str, *, folder: str | None, per_sample: int | None, key: str
    ) -> None:
        self._per_sample = per_sample
        super().__init__(shards, name, folder=folder, key=key)

    @classmethod
    def of(cls, source: Source, shards: ShardSet, *, key: str) -> "LabelSidecars | None":
        """Those that a source names, if any; raises as the constructor."""
        if source.labels in (None, CLS):
            return None
        assert source.labels is not None
        per_sample = source.labels_per_sample
        return cls(shards, source.labels, folder=source.labels_from, per_sample=per_sample, key=key)

    def parse(self, data: bytes) -> Labels:
        return parse_sidecar(data)

    def origin_in(self, said: Mapping[bytes, bytes]) -> Origin:
        return Origin.of(said)

    def in_words(self, origin: Origin) -> str:
        return in_words(origin)

    def _check_example(self, content: Labels) -> None:
        self.width = self._per_sample or content.width
        if not self.width:
            raise self._again(self._first, "has no label for any sample")

    def _check_content(self, shard: int, content: Labels) -> None:
        if self._per_sample is None and content.width > self.width:
            raise self._error(
                shard,
                f"has {content.width} labels for a sample, {self._paths[self._first]} at most {self.width}; "
                f"set {self._key}.labels_per_sample",
            )


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
        origin=Origin.of(file.schema_arrow.metadata or {}),
    )
    classes, largest = labels.origin.num_classes, int(labels.values.max(initial=0))
    if classes is not None and largest >= classes:
        raise ValueError(f"has the label {largest}, beyond its {classes} classes")
    return labels


def in_words(origin: Origin) -> str:
    """In words."""
    return f"{origin.num_classes or 'unknown'} classes, made by {origin.made_by or 'unknown'}"


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
