"""A folder of images with their captions beside them, read as a table."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.data.tools.tables.table import HEAD, IMAGE_SUFFIXES, Place, Row, Table
from vlm.errors import DataError

_MAX_TABLES_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class FolderTable(Table):
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
        """List the images.

        Raises:
            DataError: there are none.
        """
        files = tuple(_list_images(path))
        if not files:
            endings = (".csv", ".tsv", ".jsonl", ".parquet")
            tables = [file for file in sorted(path.iterdir()) if file.suffix.lower() in endings]
            hint = " or ".join(f"input={file}" for file in tables[:_MAX_TABLES_NAMED])
            raise DataError(
                f"input={path} holds no images ({', '.join(IMAGE_SUFFIXES)})"
                + (f"; for a table in it: {hint}" if tables else "; name a folder that does, or a table")
            )
        table = cls(path=path, columns=(), files=files)
        columns = dict.fromkeys(name for row in itertools.islice(table.rows(), HEAD) for name in row.values)
        return dataclasses.replace(table, columns=tuple(columns))

    @property
    def description(self) -> str:
        """The kind."""
        return f"a folder of {len(self.files)} images"

    def rows(self) -> Iterator[Row]:
        """Paths and the content of the files beside them."""
        for number, (image, has_text, has_json) in enumerate(self.files, self.first):
            stem = os.path.splitext(self.path / image)[0]
            try:
                values = _read_object(Path(f"{stem}.json")) if has_json else {}
                text = {"txt": Path(f"{stem}.txt").read_text("utf-8-sig").strip()} if has_text else {}
            except (OSError, ValueError, RecursionError) as error:
                yield Row(number, {"image": image}, f"what lies beside it cannot be read: {error}")
            else:
                yield Row(number, {"image": image, **text, **_without(values, "image", *text)})

    def places(self, image: str) -> Iterator[Place]:
        """Paths."""
        for number, (name, _, _) in enumerate(self.files, self.first):
            yield Place(number, name)

    def part(self, *, number: int, place: int, count: int) -> "FolderTable":
        """Some of the images."""
        files = self.files[place - self.first : place - self.first + count]
        return dataclasses.replace(self, files=files, first=number)

    def fingerprint(self) -> str:
        """Of the names, sizes and times of change: reading every byte would take as long as packing."""
        value = hashlib.sha256()
        for image, has_text, has_json in self.files:
            stem = os.path.splitext(image)[0]
            beside = [f"{stem}.txt"] * has_text + [f"{stem}.json"] * has_json
            states = [(name, *_state(self.path / name)) for name in (image, *beside)]
            value.update(repr(states).encode("utf-8", "backslashreplace"))
        return value.hexdigest()


def _list_images(folder: Path) -> Iterator[tuple[str, bool, bool]]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        present = set(names)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                path = os.path.relpath(os.path.join(where, name), folder)
                yield path, f"{stem}.txt" in present, f"{stem}.json" in present


def _state(path: Path) -> tuple[int, ...]:
    """Size and time of the last change; nothing of a file that is gone, which reading it will tell."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def _read_object(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no json object")
    return values


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
