"""Hard negatives beside a shard: `<stem>.<name>.parquet` has a row for each of its samples, in their order.

Its column `key` is the key of the sample, `negatives` a list of (caption, negative, rule): a caption of the
sample, a text that resembles it and is wrong for the image, and what made one of the other; it may be empty.
The metadata has `maker` and `seed`, and `made_by`, which tells negatives of one making from others.
"""

import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from vlm.data.shards import ShardSet
from vlm.data.sidecar import Sidecars, check_name
from vlm.data.sources import Source
from vlm.data.tar import RawSample
from vlm.errors import ConfigError, DataError
from vlm.files import replacing, writing

KEY, COLUMN = "key", "negatives"


class Negative(NamedTuple):
    """A text that is wrong for an image, although it resembles a caption of it."""

    caption: str
    negative: str
    rule: str


class SampleNegatives(NamedTuple):
    """The hard negatives of one sample, and its key, which tells whether they are its own."""

    key: str
    negatives: tuple[Negative, ...]


class Origin(NamedTuple):
    """What all sidecars of one making agree in; empty where they do not say."""

    maker: str
    seed: str
    made_by: str

    @classmethod
    def of(cls, said: Mapping[bytes, bytes]) -> "Origin":
        """What the metadata of a sidecar says."""
        return cls(*(said.get(name.encode(), b"").decode(errors="replace") for name in cls._fields))


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """The hard negatives of a shard's samples; they stay in Arrow's compact form until one is asked for.

    Args:
        keys: Arrow's array of strings.
        column: Arrow's array of lists of (caption, negative, rule).
    """

    keys: Any
    column: Any
    origin: Origin

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> SampleNegatives:
        found = self.column[row].as_py() or ()
        return SampleNegatives(self.keys[row].as_py(), tuple(Negative(**value) for value in found))

    @property
    def digest(self) -> str:
        """Of keys and negatives, however a file stores them."""
        return hashlib.sha256(repr([self.keys.to_pylist(), self.column.to_pylist()]).encode()).hexdigest()


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

    lists = [[negative._asdict() for negative in row] for row in rows]
    columns = {
        name: pa.array(values, kind)
        for values, (name, kind) in zip((keys, lists), _kinds().items(), strict=True)
    }
    table = pa.table(columns)
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
        schema = file.schema_arrow
        if missing := {KEY, COLUMN} - set(schema.names):
            raise ValueError(f"has no column {min(missing)}; it has {', '.join(schema.names) or 'none'}")
        table = file.read(columns=[KEY, COLUMN], use_threads=False)
        keys, column = (table[name].cast(kind).combine_chunks() for name, kind in _kinds().items())
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    texts = column.flatten()
    if keys.null_count or texts.null_count or any(part.null_count for part in texts.flatten()):
        raise ValueError(f"has nothing at some place in the columns {KEY} and {COLUMN}")
    return Negatives(keys=keys, column=column, origin=Origin.of(schema.metadata or {}))


def check_negatives(source: Source, *, key: str) -> None:
    """Check that the name of sidecars is one, and that there are captions that they are about.

    Raises:
        ConfigError: they contradict each other, or a number is out of range.
    """
    if source.negatives_per_sample < 1:
        raise ConfigError(f"{key}.negatives_per_sample={source.negatives_per_sample} must be at least 1")
    if source.negatives is None and source.negatives_from is not None:
        raise ConfigError(
            f"{key}.negatives_from={source.negatives_from} is for hard negatives, and {key}.negatives=null; "
            "name the sidecars, or set it to null"
        )
    if source.negatives is not None:
        check_name(source.negatives, key=f"{key}.negatives", folder=f"{key}.negatives_from")
        if source.captions is None:
            raise ConfigError(f"{key}.negatives={source.negatives} are of captions, and {key}.captions=null")


def draw_negatives(
    sample: SampleNegatives, caption: str, *, count: int, rng: random.Random
) -> tuple[str, ...]:
    """The negatives of a caption, in their order; of more than `count` so many, drawn at random."""
    found = [n.negative for n in sample.negatives if n.caption.strip() == caption and n.negative.strip()]
    ranks = sorted(range(len(found)), key=lambda _: rng.random())  # random() is the same in every release
    return tuple(found[place] for place in sorted(ranks[:count]))


class NegativeSidecars(Sidecars[Negatives]):
    """Hard negatives that lie beside the shards of a source; arguments as of `Sidecars`."""

    what = "negatives"
    instead = "null"

    @classmethod
    def of(cls, source: Source, shards: ShardSet, *, key: str) -> "NegativeSidecars | None":
        """Those that a source names, if any; raises as the constructor."""
        if source.negatives is None:
            return None
        return cls(shards, source.negatives, folder=source.negatives_from, key=key)

    def parse(self, data: bytes) -> Negatives:
        return parse_negatives(data)

    def origin_in(self, said: Mapping[bytes, bytes]) -> Origin:
        return Origin.of(said)

    def in_words(self, origin: Origin) -> str:
        maker, seed, made_by = (value or "unknown" for value in origin)
        return f"maker {maker}, seed {seed}, made by {made_by}"

    def refuse(self, own: str, of: str) -> NoReturn:
        """Raise the DataError of negatives that are of other captions.

        Args:
            own: a caption of a sample.
            of: what the sample's negatives are of in its place.
        """
        raise DataError(
            f"{self._setting}: those of the first samples are not of their captions, but of {of!r} where "
            f"a caption is {own!r}; make them of the fields that {self._key}.captions names"
        )

    def check_key(self, raw: RawSample) -> None:
        """Raise a DataError where what lies beside a shard is of another sample than the shard's."""
        key = raw.beside["negatives"].key
        if key != raw.key:
            raise DataError(
                f"{self._setting}: beside {raw.shard} lie those of {key!r} where the shard has {raw.key!r}; "
                "make the negatives again"
            )

    def _check_example(self, content: Negatives) -> None:
        if not len(content.column.flatten()):
            raise self._again(self._first, "has no negatives of any sample")


def _kinds() -> dict[str, Any]:
    """The columns and what is in them."""
    import pyarrow as pa

    return {KEY: pa.string(), COLUMN: pa.list_(pa.struct([(name, pa.string()) for name in Negative._fields]))}
