"""Hard negatives beside a shard: `<stem>.<name>.parquet` has a row for each of its samples, in their order.

Its column `key` is the key of the sample, `negatives` a list of (caption, negative, rule): a caption of the
sample, a text that resembles it and is wrong for the image, and what made one of the other; it may be empty.
The metadata has `maker` and `seed`, and `made_by`, which tells negatives of one making from others.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlm.files import replacing, writing

KEY, COLUMN = "key", "negatives"
_FIELDS = ("caption", "negative", "rule")
_ORIGIN = ("maker", "seed", "made_by")


class Negative(NamedTuple):
    """A text that is wrong for an image, although it resembles a caption of it."""

    caption: str
    negative: str
    rule: str


class Origin(NamedTuple):
    """What all sidecars of one making agree in; empty where they do not say."""

    maker: str
    seed: str
    made_by: str


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """The hard negatives of a shard's samples, and the samples' keys."""

    keys: list[str]
    rows: list[tuple[Negative, ...]]
    origin: Origin

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> tuple[Negative, ...]:
        return self.rows[row]

    @property
    def digest(self) -> str:
        """Of keys and negatives, however a file stores them."""
        return hashlib.sha256(
            repr([self.keys, [list(map(tuple, row)) for row in self.rows]]).encode()
        ).hexdigest()


def write_negatives(
    path: Path,
    keys: Sequence[str],
    rows: Sequence[Sequence[Negative]],
    *,
    maker: str,
    seed: int,
    made_by: str,
) -> None:
    """Write the hard negatives of a shard's samples, whole or not at all.

    Args:
        path: `sidecar_path` of the shard.
        keys: of the samples, in the order of the shard.
        rows: the negatives of each.
        made_by: the same beside every shard, and another for negatives that were made in another way.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.struct([(name, pa.string()) for name in _FIELDS]))
    lists = [[negative._asdict() for negative in row] for row in rows]
    table = pa.table({KEY: pa.array(keys, pa.string()), COLUMN: pa.array(lists, kind)})
    said = {"maker": maker, "seed": str(seed), "made_by": made_by}
    with writing(path), replacing(path) as draft:
        pq.write_table(table.replace_schema_metadata(said), draft, compression="zstd")


def parse_negatives(data: bytes) -> Negatives:
    """The hard negatives in the bytes of a sidecar.

    Raises:
        ValueError: it is none; the message goes on after the name of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        missing = {KEY, COLUMN} - set(file.schema_arrow.names)
        if missing:
            raise ValueError(
                f"has no column {sorted(missing)[0]}; it has {', '.join(file.schema_arrow.names) or 'none'}"
            )
        columns = file.read(columns=[KEY, COLUMN], use_threads=False).to_pydict()
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    return Negatives(
        keys=columns[KEY],
        rows=[tuple(map(_negative, row or ())) for row in columns[COLUMN]],
        origin=origin_of(file.schema_arrow.metadata or {}),
    )


def origin_of(said: dict[bytes, bytes]) -> Origin:
    """From the metadata of a file."""
    return Origin(*(said.get(name.encode(), b"").decode(errors="replace") for name in _ORIGIN))


def _negative(value: object) -> Negative:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in _FIELDS):
        raise ValueError(f"has {value!r} in the column {COLUMN}, not {', '.join(_FIELDS)}")
    return Negative(*(value[name] for name in _FIELDS))
