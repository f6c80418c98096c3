"""A damaged index: sizes.json and <stem>.index.parquet."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz import damage
from fuzz.case import Case
from fuzz.commands import CHECK, INDEX, TRAIN

SIZES, OFFSETS = "shards/sizes.json", "shards/00001.index.parquet"


def cases() -> Iterator[Case]:
    for what, text in _SIZES.items():
        yield Case("index", f"sizes.json: {what}", _sizes(text), (TRAIN, CHECK, INDEX), "s")
    for what, change in _BYTES.items():
        yield Case("index", f"index.parquet: {what}", _offsets_bytes(change), (TRAIN, CHECK, INDEX), OFFSETS)
    for what, table in _TABLES.items():
        yield Case("index", f"index.parquet: {what}", _offsets(table), (TRAIN, CHECK, INDEX), OFFSETS)
    yield Case("index", "index.parquet: that of another shard", _swapped, (TRAIN, CHECK, INDEX), OFFSETS)
    yield Case(
        "index", "img2dataset's statistics: no json", _statistics(b"{"), (TRAIN, INDEX), "00001_stats.json"
    )
    yield Case(
        "index",
        "img2dataset's statistics: a text in place of the count",
        _statistics(b'{"successes": "many"}'),
        (TRAIN, INDEX),
        "00001_stats.json",
    )


def _sizes(text: bytes | Callable[[dict[str, int]], object]):
    def do(folder: Path, rng: Random) -> None:
        path = folder / SIZES
        path.write_bytes(
            text if isinstance(text, bytes) else json.dumps(text(json.loads(path.read_text()))).encode()
        )

    return do


def _offsets_bytes(change: damage.Bytes):
    return lambda folder, rng: damage.rewrite(folder / OFFSETS, change, rng)


def _offsets(make: Callable[[list[int]], pa.Table]):
    def do(folder: Path, rng: Random) -> None:
        offsets = pq.read_table(folder / OFFSETS)["offset"].to_pylist()
        pq.write_table(make(offsets), folder / OFFSETS)

    return do


def _swapped(folder: Path, rng: Random) -> None:
    # That of a shard whose samples are longer: two rows of it are places within members of this one.
    rows = pq.read_table(folder / "shards/00002.index.parquet").to_pylist()
    for row in rows[3:]:
        row["offset"] += 512
    pq.write_table(pa.Table.from_pylist(rows), folder / OFFSETS)


def _statistics(text: bytes):
    def do(folder: Path, rng: Random) -> None:
        for path in (folder / "shards").glob("*.json"):
            path.unlink()
        (folder / "shards/00001_stats.json").write_bytes(text)

    return do


def _column(values: list, kind: pa.DataType) -> pa.Table:
    return pa.table({"offset": pa.array(values, kind)})


_SIZES: dict[str, bytes | Callable[[dict[str, int]], object]] = {
    "cut off": b'{"00000.tar": 16, "00001',
    "empty": b"",
    "random bytes": b"\x93\x00\xff\xfe\x11",
    "a list": b"[16, 16, 16, 16]",
    "nested 100,000 deep": b"[" * 100_000,
    "counts that are texts": lambda sizes: dict.fromkeys(sizes, "sixteen"),
    "counts that are null": lambda sizes: dict.fromkeys(sizes),
    "counts that are fractions": lambda sizes: dict.fromkeys(sizes, 16.5),
    "counts that are NaN": b'{"00000.tar": NaN, "00001.tar": 16}',
    "counts that are infinite": b'{"00000.tar": Infinity}',
    "a negative count": lambda sizes: {**sizes, "00001.tar": -16},
    "a count that is too small": lambda sizes: {**sizes, "00001.tar": 10},
    "a count that is too large": lambda sizes: {**sizes, "00001.tar": 20},
    "a count of 10^12": lambda sizes: {**sizes, "00001.tar": 10**12},
    "a count of 10^30": lambda sizes: {**sizes, "00001.tar": 10**30},
    "all counts 0": lambda sizes: dict.fromkeys(sizes, 0),
    "a shard left out": lambda sizes: {name: size for name, size in sizes.items() if name != "00001.tar"},
    "names of other shards": b'{"/etc/passwd": 3, "../00000.tar": 5}',
}

_BYTES: dict[str, damage.Bytes] = {
    "cut off": damage.cut,
    "empty": damage.empty,
    "random bytes": damage.garbage,
    "zeros": damage.zeros,
    "eight wrong bits": damage.flipped,
}

_TABLES: dict[str, Callable[[list[int]], pa.Table]] = {
    "without the column offset": lambda offsets: pa.table({"place": offsets}),
    "offsets that are texts": lambda offsets: _column([str(o) for o in offsets], pa.string()),
    "offsets that are null": lambda offsets: _column([None] * len(offsets), pa.int64()),
    "offsets that are fractions": lambda offsets: _column([o + 0.5 for o in offsets], pa.float64()),
    "offsets that are lists": lambda offsets: _column([[o] for o in offsets], pa.list_(pa.int64())),
    "offsets moved by 7 bytes": lambda offsets: _column([o + 7 for o in offsets], pa.int64()),
    "offsets that are negative": lambda offsets: _column([-o - 1 for o in offsets], pa.int64()),
    "offsets behind the end": lambda offsets: _column([o + 10**9 for o in offsets], pa.int64()),
    "offsets of 2^62": lambda offsets: _column([2**62] * len(offsets), pa.int64()),
    "offsets of 2^63": lambda offsets: _column([2**63] * len(offsets), pa.uint64()),
    "offsets in reverse": lambda offsets: _column(offsets[::-1], pa.int64()),
    "fewer rows than samples": lambda offsets: _column(offsets[:9], pa.int64()),
    "more rows than samples": lambda offsets: _column([*offsets, 0, 0, 0], pa.int64()),
    "no rows": lambda offsets: _column([], pa.int64()),
}
