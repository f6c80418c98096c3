"""What an evaluation reads from the record of a sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.data import lookup, record_captions
from vlm.errors import DataError

Label = int | str


def read_text(path: Path) -> str:
    """A text file, without a byte order mark. Raises `DataError` where it is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; convert it") from error


def label_of(record: Mapping[str, Any], field: str) -> Label:
    """The label of a sample. Raises `DataError` where the field is absent or holds no number or text."""
    value = lookup(record, field)
    if not isinstance(value, int | str):
        raise DataError(
            f"sample {record['key']} has {field}={value!r:.80}; expected a number or a text as its label"
            f"{_instead(record)}"
        )
    return value


def captions_of(record: Mapping[str, Any], field: str) -> list[str]:
    """Every caption in a field: a text, a text with one caption a line, or a list of texts."""
    texts = [text for captions in record_captions(record, [field]) for text in captions]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def every_caption(record: Mapping[str, Any], fields: Sequence[str], *, or_none: bool = False) -> list[str]:
    """The captions of all fields. Raises `DataError` where there is none.

    Args:
        or_none: whether there may be none where a field says so, by an empty list.
    """
    found = [line for field in fields for line in captions_of(record, field)]
    if not found and not (or_none and any(lookup(record, field) == [] for field in fields)):
        raise DataError(
            f"sample {record['key']} has no caption in {list(fields)}; set `captions`{_instead(record)}"
        )
    return found


def _instead(record: Mapping[str, Any]) -> str:
    """The fields that a sample does have."""
    names = [name for name in record if name != "key" and not isinstance(record[name], Mapping)]
    names += [
        f"{name}.{inner}" for name, value in record.items() if isinstance(value, Mapping) for inner in value
    ]
    return f" (it has {', '.join(names[:20])})" if names else ""
