"""From the members of a raw sample to an image, a caption and a record."""

import io
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vlm.broken import Cause
from vlm.data.images import UnreadableImageError, open_image
from vlm.data.tar import RawSample

T = TypeVar("T")

IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp")

# Records nest a few levels; what nests by the thousand is meant to exhaust the stack.
_DEEPEST_FIELD = 8


class BrokenSampleError(ValueError):
    """A sample lacks what is asked of it."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


def members_of(fields: Sequence[str]) -> frozenset[str]:
    """The members that hold these fields: `json` for `json.caption_en`."""
    return frozenset(field.partition(".")[0] for field in fields)


def sample_image(raw: RawSample) -> Image.Image:
    """The sample's image, header read, pixels not yet decoded.

    Raises:
        BrokenSampleError: there is none, or it is no image.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in raw.members:
            try:
                return open_image(raw.members[extension])
            except UnreadableImageError as error:
                raise BrokenSampleError(f"its {extension} is unreadable: {error}", error.cause) from error
    raise BrokenSampleError(f"it has no image ({', '.join(IMAGE_EXTENSIONS)})", Cause.NO_IMAGE)


def decode_record(raw: RawSample) -> dict[str, Any]:
    """Key and members that are no image: `json` parsed, `cls` an int, other text as stripped strings.

    `npy`, where it is a vector of zeros and ones, is the list of the places of its ones: the classes of a
    picture with several. Other arrays are left out.

    Raises:
        BrokenSampleError: the json or the cls cannot be parsed.
    """
    record: dict[str, Any] = {"key": raw.key}
    for extension, data in raw.members.items():
        if extension in IMAGE_EXTENSIONS:
            continue
        if extension == "npy":
            if (present := _places_of_ones(data)) is not None:
                record[extension] = present
            continue
        try:
            record[extension] = _decode(extension, data)
        except UnicodeDecodeError:
            continue  # bytes of other kinds, which no record holds
        except (ValueError, RecursionError) as error:
            message = f"its {extension} cannot be parsed: {error}"
            raise BrokenSampleError(message, Cause.UNREADABLE_TEXT) from error
    return record


def lookup(record: Mapping[str, Any], path: str) -> Any | None:
    """The value at a dotted path, as `json.concept`; None where there is none."""
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def record_captions(record: Mapping[str, Any], fields: Sequence[str]) -> list[list[str]]:
    """The non-empty captions of each field that has any, the fields in their order."""
    found = [_strings(lookup(record, field)) for field in fields]
    return [captions for captions in found if captions]


def draw_caption(record: Mapping[str, Any], fields: Sequence[str], *, rng: random.Random) -> str:
    """One caption: each field that has any is equally likely, then each of its captions.

    Raises:
        BrokenSampleError: no field has a caption.
    """
    candidates = record_captions(record, fields)
    if not candidates:
        if any(lookup(record, field) is not None for field in fields):
            raise BrokenSampleError(f"its caption is empty ({', '.join(fields)})", Cause.EMPTY_CAPTION)
        raise BrokenSampleError(f"it has no caption in {', '.join(fields)}", Cause.NO_CAPTION)
    return _draw(_draw(candidates, rng), rng)


def field_names(record: Mapping[str, Any], *, depth: int = _DEEPEST_FIELD) -> list[str]:
    """The fields within members that hold text, as `json.caption_en`."""
    names: list[str] = []
    if depth == 0:
        return names
    for name, value in record.items():
        if isinstance(value, Mapping):
            names += [f"{name}.{inner}" for inner in value if _strings(value[inner])]
            names += [f"{name}.{inner}" for inner in field_names(value, depth=depth - 1)]
    return names


def _decode(extension: str, data: bytes) -> Any:
    text = data.decode("utf-8")
    if extension == "json":
        return json.loads(text)
    return int(text) if extension == "cls" else text.strip()


def _places_of_ones(data: bytes) -> list[int] | None:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.isin(array, (0, 1)).all():
        return None
    return [int(place) for place in array.nonzero()[0]]


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    stripped = [item.strip() for item in values if isinstance(item, str)]
    return [item for item in stripped if item and _is_text(item)]


def _is_text(value: str) -> bool:
    """Whether a string can be written: json may hold halves of characters, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _draw(choices: Sequence[T], rng: random.Random) -> T:
    # random() alone is promised to give the same numbers in every Python release
    return choices[int(rng.random() * len(choices))]
