"""The pictures of single cases, as they are stored."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.data import ImageFile, data_uri, open_shards, read_images, thumbnail
from vlm.data.images import UnreadableImageError
from vlm.errors import DataError, VlmError
from vlm.evaluation.sweep_report.details import Detail

logger = logging.getLogger(__name__)

SIDE = 128


@dataclass(frozen=True, slots=True)
class Album:
    """The pictures of one question, by position in its data set."""

    pictures: dict[int, str]
    missing: str | None
    """Why there are none."""


def read_albums(details: Sequence[Detail]) -> list[Album]:
    """An album for each detail; a data set is opened once, however many questions it has."""
    wanted: dict[str, set[int]] = {}
    for detail in details:
        wanted.setdefault(_place(detail), set()).update(case.picture for case in detail.cases)
    read = {place: _album(json.loads(place), sorted(positions)) for place, positions in wanted.items()}
    return [read[_place(detail)] for detail in details]


def _place(detail: Detail) -> str:
    return json.dumps(detail.pictures, sort_keys=True)


def _album(where: Mapping[str, Any], positions: Sequence[int]) -> Album:
    if not positions:
        return Album({}, None)
    try:
        found = _images(where, positions)
        return Album(
            {position: data_uri(thumbnail(image, side=SIDE)) for position, image in found.items()}, None
        )
    except (VlmError, OSError, UnreadableImageError, LookupError, TypeError, ValueError) as error:
        said = str(error) or type(error).__name__
        logger.warning("the report lacks pictures: %s", said)
        return Album({}, said)


def _images(where: Mapping[str, Any], positions: Sequence[int]) -> dict[int, Image.Image]:
    """By position."""
    if "list" in where:
        files = json.loads(Path(where["list"]).read_text(encoding="utf-8"))["files"]
        return {position: _file(files[position]).open() for position in positions}
    if "shards" in where:
        images = read_images(open_shards(where["shards"], key="pictures.shards"), positions)
        return dict(zip(positions, images, strict=True))
    raise DataError("the sweep does not say where they lie")


def _file(entry: Sequence[Any]) -> ImageFile:
    """The fields of an `ImageFile`, as json has them."""
    path, box, base64 = entry
    if box is not None:
        left, top, width, height = map(float, box)
        box = left, top, width, height
    return ImageFile(path, box, None if base64 is None else tuple(base64))
