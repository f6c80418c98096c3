"""One shard of a table, written by one process."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlm.data.images import UnreadableImageError, open_image
from vlm.data.samples import record_captions
from vlm.data.tools.columns import Columns
from vlm.data.tools.processes import Advance
from vlm.data.tools.tables import Row, Table
from vlm.data.writer import OpenShard

_ADVANCE_EVERY = 64
_SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}
_OTHER_FORMATS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


class Skipped(NamedTuple):
    """A row of which no sample was made."""

    row: int
    image: str
    reason: str


@dataclass(frozen=True)
class ShardRecord:
    """What became of the rows of a shard; lies beside the shard as long as it does."""

    samples: int
    size: int
    """Bytes of the tar."""
    skipped: tuple[Skipped, ...]

    def write(self, path: Path) -> None:
        """Write to a file that is not read before the shard has its name."""
        content = {"samples": self.samples, "size": self.size, "skipped": self.skipped}
        path.write_text(json.dumps(content), "utf-8")

    @classmethod
    def read(cls, path: Path, *, shard: Path) -> "ShardRecord | None":
        """The record of a shard that is whole; None where it is to be written (again)."""
        try:
            content = json.loads(path.read_text("utf-8"))
            record = cls(
                content["samples"], content["size"], tuple(Skipped(*row) for row in content["skipped"])
            )
            whole = shard.stat().st_size == record.size and index_of(shard).stat().st_size > 0
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if whole else None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard to write.

    Args:
        table: its rows alone.
        root: the folder of relative image paths.
        decode: whether to decode every image, not only to look at its first bytes.
    """

    table: Table
    columns: Columns
    root: Path
    decode: bool
    shard: Path
    record: Path
    rows: int


class SkippedRowError(Exception):
    """No sample can be made of a row."""


def index_of(shard: Path) -> Path:
    """The offsets beside a shard."""
    return shard.with_name(f"{shard.stem}.index.parquet")


def write_shard(task: ShardTask, advance: Advance) -> tuple[str, ShardRecord]:
    """Write a shard and its record, then give it its name, which is returned with the record.

    Raises:
        OSError: it cannot be written; the unfinished shard is removed.
    """
    shard = OpenShard(task.shard)
    skipped = []
    done = 0
    try:
        for row in task.table.rows():
            try:
                shard.add(f"{row.number:09d}", dict(_members(row, task)))
            except SkippedRowError as error:
                skipped.append(Skipped(row.number, _name(row.values.get(task.columns.image)), str(error)))
            done += 1
            if done % _ADVANCE_EVERY == 0:
                advance(_ADVANCE_EVERY)
        record = ShardRecord(len(shard.keys), shard.whole_size, tuple(skipped))
        record.write(task.record)
    except BaseException:
        shard.abandon()
        raise
    shard.finish()
    advance(done % _ADVANCE_EVERY)
    return task.shard.name, record


def _members(row: Row, task: ShardTask) -> Iterator[tuple[str, bytes]]:
    """Image, first caption and the row itself, as the members of a sample."""
    if row.problem:
        raise SkippedRowError(row.problem)
    column = task.columns.image
    captions = record_captions(row.values, task.columns.captions)
    if not captions:
        raise SkippedRowError(f"no caption in {', '.join(task.columns.captions)}")
    data = _image_bytes(row.values.get(column), task.root)
    yield _image_kind(data, decode=task.decode), data
    first = record_captions(row.values, task.columns.captions[:1])
    if first:
        yield "txt", first[0][0].encode()
    values = {name: value for name, value in row.values.items() if not _holds_bytes(value)}
    # A path may hold bytes that are no UTF-8; escaped they are json still.
    yield "json", json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _image_bytes(value: Any, root: Path) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise SkippedRowError("no image is named")
    try:
        with open(os.path.join(root, value.strip()), "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise SkippedRowError("there is no such file") from None
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        raise SkippedRowError(f"the file cannot be read: {getattr(error, 'strerror', error)}") from None


def _image_kind(data: bytes, *, decode: bool) -> str:
    """Extension of an image by its first bytes, whatever it is called."""
    kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
        if len(data) < 8 + int.from_bytes(data[4:8], "little"):
            raise SkippedRowError("the image is cut short")
    if kind is None:
        other = next((name for start, name in _OTHER_FORMATS.items() if data.startswith(start)), None)
        if other:
            raise SkippedRowError(f"{other} is no format of shards; convert it to JPEG, PNG or WebP")
        raise SkippedRowError("the file is empty" if not data else "the file is no JPEG, PNG or WebP image")
    if decode:
        try:
            open_image(data).load()
        except (UnreadableImageError, OSError, SyntaxError, ValueError) as error:
            raise SkippedRowError(f"the image cannot be decoded: {error}") from None
    return kind


def _holds_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


def _name(image: Any) -> str:
    if isinstance(image, Mapping):
        image = image.get("path")
    return image if isinstance(image, str) else ""
