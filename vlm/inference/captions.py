"""Captions of many pictures, one line of JSON each, written as they are made."""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm.data import ImageFile, ShardSet, open_shards
from vlm.distributed import ControlGroup, Topology
from vlm.errors import ConfigError, DataError
from vlm.files import write_json, writing
from vlm.inference.decoding import Decoding
from vlm.inference.embed import CaptionLine, Embedder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Captioned(NamedTuple):
    """Pictures that have a caption now, lines that were there before, and pictures that cannot be read."""

    written: int
    before: int
    unreadable: int


def pictures(images: str | Sequence[str]) -> ShardSet | list[ImageFile]:
    """What patterns name: shards, or image files and all those of folders, in a fixed order.

    Raises:
        ConfigError: they name nothing, or shards and other files.
        DataError: shards cannot be read.
    """
    patterns = [images] if isinstance(images, str) else list(images)
    tars = [pattern for pattern in patterns if ".tar" in pattern]
    if tars and len(tars) == len(patterns):
        return open_shards(tars, key="images")
    if tars:
        raise ConfigError(f"images={patterns} names shards and other files; caption them one after the other")
    files = [ImageFile(path) for pattern in patterns for path in _files(pattern)]
    if not files:
        raise ConfigError(
            f"images={patterns} names no image; give a folder, a pattern such as 'photos/*.jpg', or shards"
        )
    return files


def _files(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        found = (str(path) for path in Path(pattern).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return sorted(found)
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def write_captions(
    embedder: Embedder,
    source: ShardSet | list[ImageFile],
    decoding: Decoding,
    out: Path,
    *,
    topology: Topology,
    group: ControlGroup,
    made_by: Mapping[str, Any],
) -> Captioned:
    """Write `out`, a line for each picture in their order: row, key, and caption or why there is none.

    Lines that are there are not made again, so that a command which was interrupted goes on. Every rank calls
    it, and the first writes.

    Args:
        made_by: plain data that says what captions depend on; lines that were made by something else are none
            of these.

    Raises:
        ConfigError: `out` has lines of other pictures, or the model has no text decoder.
        OutputError: it cannot be written; the lines that are there stay.
    """
    found = group.first_rank_does(lambda: _lines(out, source, made_by))
    unreadable = sum(line.unreadable is not None for line in found)
    written = before = len(found)
    for lines in embedder.write(source, decoding, first=before):
        if topology.is_main:
            with writing(out), out.open("a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps(line._asdict(), ensure_ascii=False) + "\n")
        written += len(lines)
        unreadable += sum(line.unreadable is not None for line in lines)
    return Captioned(written - unreadable, before, unreadable)


def read_captions(path: Path) -> list[CaptionLine]:
    """The whole lines of a file.

    Raises:
        DataError: a line is none of captions.
    """
    lines = []
    # Bytes: a text may hold other ends of lines, and a last line may end within a character.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(CaptionLine(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}, is no caption: {error}") from error
    return lines


def _lines(out: Path, source: ShardSet | list[ImageFile], made_by: Mapping[str, Any]) -> list[CaptionLine]:
    """Those that are there, of these pictures; a last one that was written in part is taken away."""
    beside = out.with_name(f"{out.name}.made_by.json")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            write_json(beside, dict(made_by), indent=1)
            return []
        before = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
        if before != dict(made_by):
            changed = [name for name in made_by if (before or {}).get(name) != made_by[name]]
            raise ConfigError(
                f"out={out} has captions that were made with another {' and '.join(changed)}, as "
                f"{beside.name} says; choose another file, or delete both"
            )
        try:
            lines = read_captions(out)
        except DataError as error:
            raise ConfigError(f"out={out} is no file of captions: {error}; choose another") from error
        if not isinstance(source, ShardSet):
            for line, file in zip(lines, source, strict=False):
                if line.key != file.path:
                    raise ConfigError(
                        f"out={out} has a caption of {line.key} where {file.path} is next; choose another "
                        "file, or delete it"
                    )
        count = source.num_samples if isinstance(source, ShardSet) else len(source)
        if len(lines) > count:
            raise ConfigError(
                f"out={out} has {len(lines)} captions, and there are {count} pictures; choose another file, "
                "or delete it"
            )
        os.truncate(out, out.read_bytes().rfind(b"\n") + 1)
        return lines
