"""Files that are whole or absent, and what is said when they cannot be written."""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.errors import OutputError

DRAFT = ".partial"
"""How the names of unfinished files end."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` in one step, if nothing goes wrong until the end."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{DRAFT}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, *, then: str = "make room and try again") -> Iterator[None]:
    """Say which file or folder an error of the file system is about, and what to do if the disk is full.

    Raises:
        OutputError: in the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else str(path)
        where = path if Path(named).is_relative_to(path.parent) else named  # not a draft's hidden name
        advice = f"; what was written before is whole: {then}" if is_full(error) else ""
        raise OutputError(f"{where} cannot be written: {error.strerror or error}{advice}") from error


def write_json(path: Path, content: Any, *, indent: int | None) -> None:
    """Write a file of json, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is that of a full disk or a used quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return error is not None and is_full(error.__cause__)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder, to which no other process writes now."""
    for draft in folder.glob(f"*{DRAFT}"):
        draft.unlink(missing_ok=True)
