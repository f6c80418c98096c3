"""Files that name pictures, and the folders in which these lie."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, DataError
from vlm.evaluation.fields import read_text

Folders = str | Sequence[str]
"""One, or several in which each picture is looked for."""


def existing(path: str | Path, *, key: str) -> Path:
    """The file. Raises `ConfigError` where there is none."""
    if not Path(path).is_file():
        raise ConfigError(f"{key}={path}: no such file")
    return Path(path)


def folders(images: Folders, *, key: str = "images") -> list[Path]:
    """Raises `ConfigError` where one is no folder."""
    found = [Path(images)] if isinstance(images, str) else [Path(folder) for folder in images]
    for folder in found:
        if not folder.is_dir():
            raise ConfigError(f"{key}={folder}: no such folder; name that of the pictures")
    return found


def place(image: str, roots: Sequence[Path]) -> str:
    """The file of a picture in the first folder that has it; where none has it, its place in the first."""
    paths = [os.path.join(root, image) for root in roots]
    return next((path for path in paths if len(paths) > 1 and os.path.isfile(path)), paths[0])


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line that is not empty stands, and the line."""
    # splitlines would cut at U+2028 too, which a caption may hold
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}: line {number}", line.rstrip("\r")


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object stands, and the object. Raises `DataError` where a line is none."""
    for where, line in lines_of(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no json: {error}; each line has to be one object") from error
        if not isinstance(values, dict):
            raise DataError(f"{where} is no json object; each line has to be one")
        yield where, values


def texts(value: Any, *, where: str) -> list[str]:
    """A list of texts without blanks around them. Raises `DataError` where it is none."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where} is {value!r:.80}, not a list of texts")
    return [text.strip() for text in value if text.strip()]
