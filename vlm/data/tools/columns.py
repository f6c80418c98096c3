"""Which columns of a table hold the images and the captions."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.data.samples import lookup, record_captions
from vlm.data.sources import as_strings
from vlm.data.tools.tables import IMAGE_SUFFIXES, Row, Table, first_rows
from vlm.errors import DataError

# Names that people give, the likeliest first.
_IMAGE_NAMES = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path", "img", "jpg")
_CAPTION_NAMES = (
    *("caption", "captions", "text", "txt", "title", "description", "sentence", "alt", "alt_text", "prompt"),
    *("标题", "描述", "文本", "说明"),
)
# The share of the rows looked at that have to be of a kind.
_MOST = 0.5


@dataclass(frozen=True)
class Columns:
    """Where images and captions stand."""

    image: str
    captions: tuple[str, ...]
    has_lists: bool
    """Whether a row may have several captions in one column."""

    @property
    def fields(self) -> str:
        """The value for `data.train.captions` with which all captions are trained on."""
        names = [f"json.{name}" for name in self.captions]
        if len(names) > 1:
            return f"'[{', '.join(names)}]'"
        return names[0] if self.has_lists else "txt"


def choose_columns(
    table: Table, *, image: str | None, captions: str | Sequence[str] | None, root: Path
) -> Columns:
    """The columns that were named, and for those that were not, the likeliest by name and content.

    Args:
        root: the folder of relative image paths.

    Raises:
        DataError: a column that was named does not exist, or none can be found.
    """
    image = choose_image(table, image=image, root=root)
    rows = _rows(table)
    if captions is None:
        captions = _find_captions(table, rows, image)
    names = as_strings(captions)
    for name in names:
        _require(table, "caption", name)
        if "." in name and name in table.columns:
            raise DataError(f"caption={name}: a dot leads into nested json; rename the column without it")
    has_lists = any(isinstance(lookup(row.values, name), list) for row in rows for name in names)
    return Columns(image, names, has_lists)


def choose_image(table: Table, *, image: str | None, root: Path) -> str:
    """The column of the images; what `choose_columns` takes, and raises."""
    rows = _rows(table)
    if image is None:
        image = _find_image(table, rows, root)
    _require(table, "image", image)
    return image


def _rows(table: Table) -> list[Row]:
    rows = [row for row in first_rows(table) if row.values]
    if not rows:
        raise DataError(f"the table {table.path} has no rows")
    return rows


def _require(table: Table, key: str, name: str) -> None:
    if name not in table.columns and name.partition(".")[0] not in table.columns:
        raise DataError(f"{key}={name} is no column of {table.path}; it has {', '.join(table.columns)}")


def _find_image(table: Table, rows: Sequence[Row], root: Path) -> str:
    found = [c for c in table.columns if _share(rows, c, lambda value: is_image(value, root)) > _MOST]
    if found:
        return min(found, key=lambda name: _rank(name, _IMAGE_NAMES))
    message = f"no column of {table.path} holds paths of images or images; it has {', '.join(table.columns)}"
    for column in table.columns:
        if _share(rows, column, _is_address) > _MOST:
            raise DataError(f"{message}. {column} holds addresses: download them first, as img2dataset does")
    raise DataError(f"{message}. Name the column by image=")


def _find_captions(table: Table, rows: Sequence[Row], image: str) -> tuple[str, ...]:
    texts = [c for c in table.columns if c != image and _share(rows, c, _is_text) > 0]
    for root in _CAPTION_NAMES:
        pattern = re.compile(rf"{root}([_-].+|\d+)?", re.IGNORECASE)
        if found := tuple(column for column in texts if pattern.fullmatch(column)):
            return found
    prose = {c: length for c in texts if (length := _mean_length(rows, c))}
    if prose:
        return (max(prose, key=lambda column: prose[column]),)
    lacks = "has no .txt or .json beside its images" if table.path.is_dir() else "has no column of captions"
    raise DataError(
        f"{table.path} {lacks} (there is {', '.join(table.columns)}); name the column by caption="
    )


def is_image(value: Any, root: Path) -> bool:
    """Whether a cell holds an image or names one."""
    if isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)):
        return True
    if not isinstance(value, str) or not value.strip() or _is_address(value):
        return False
    return value.strip().lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(root / value.strip())


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\s*\w+://", value) is not None


def _is_text(value: Any) -> bool:
    return bool(record_captions({"value": value}, ["value"])) and not _is_address(value)


def _is_prose(text: str) -> bool:
    """More than one word, or Chinese, Japanese or Korean."""
    return " " in text.strip() or re.search(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", text) is not None


def _mean_length(rows: Sequence[Row], column: str) -> float:
    """Characters of a caption, 0 for columns that hold no prose."""
    values = [v for row in rows for vs in record_captions(row.values, [column]) for v in vs]
    prose = [value for value in values if _is_prose(value) and not _is_address(value)]
    return sum(map(len, prose)) / len(values) if len(prose) > _MOST * len(values) else 0.0


def _share(rows: Sequence[Row], column: str, test: Any) -> float:
    """The share of the rows with a value of this column whose value passes a test."""
    values = [value for row in rows if (value := lookup(row.values, column)) not in (None, "")]
    return sum(map(test, values)) / len(values) if values else 0.0


def _rank(name: str, known: Sequence[str]) -> int:
    return known.index(name.lower()) if name.lower() in known else len(known)
