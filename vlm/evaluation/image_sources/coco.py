"""Captions in COCO's json, and in that of Karpathy's splits."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vlm.data import ImageFile, ImageSet
from vlm.errors import ConfigError, DataError
from vlm.evaluation.fields import read_text
from vlm.evaluation.image_sources.files import Folders, existing, folders, place


class Captioned(NamedTuple):
    """A picture that an annotation names."""

    file: str
    captions: list[str]
    split: str | None = None


@dataclass(frozen=True)
class CocoImages:
    """Pictures with captions, in the order of a json file; those without captions are left out.

    Two formats are read: COCO's own, `{"images": [{"id", "file_name"}], "annotations": [{"image_id",
    "caption"}]}`, and that of Karpathy's splits of COCO, Flickr8k and Flickr30k, `{"images": [{"filename",
    "filepath" (may be absent), "split", "sentences": [{"raw"}]}]}`. `json.captions` is the list of a
    picture's captions.

    Args:
        annotations: the file.
        images: folder of the pictures, or several in which each is looked for.
        split: of Karpathy's, such as `test`; None for all.

    Raises:
        ConfigError: there is no such file or folder, or COCO's own format is asked for a split.
        DataError: it is another format, or there is no such split.
    """

    annotations: str
    images: Folders
    split: str | None = None

    def read(self) -> ImageSet:
        """Its pictures."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        roots = folders(self.images)
        pictures = [picture for picture in self._wanted() if picture.captions]
        if not pictures:
            raise DataError(f"annotations={self.annotations}: no picture has a caption")
        return ImageSet(
            tuple(ImageFile(place(picture.file, roots)) for picture in pictures),
            [{"key": picture.file, "json": {"captions": picture.captions}} for picture in pictures],
        )

    def _wanted(self) -> list[Captioned]:
        pictures = read_captions(existing(self.annotations, key="annotations"))
        if self.split is None:
            return pictures
        splits = sorted({picture.split for picture in pictures if picture.split is not None})
        if not splits:
            raise ConfigError(f"split={self.split}: {self.annotations} has no splits; leave split out")
        if self.split not in splits:
            raise DataError(f"split={self.split} is not in {self.annotations}; it has {', '.join(splits)}")
        return [picture for picture in pictures if picture.split == self.split]


def read_captions(path: Path) -> list[Captioned]:
    """Every picture that a file names, in its order, also those without captions.

    Raises:
        DataError: it is in neither format.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no json: {error}") from error
    if isinstance(content, Mapping) and "annotations" not in content and _has_sentences(content):
        return [
            _of_karpathy(entry, f"{path}: entry {n} of images") for n, entry in enumerate(content["images"])
        ]
    return _of_coco(content, path)


def _has_sentences(content: Mapping[str, Any]) -> bool:
    images = content.get("images")
    return isinstance(images, list) and any(isinstance(one, Mapping) and "sentences" in one for one in images)


def _of_karpathy(entry: Any, where: str) -> Captioned:
    values = entry if isinstance(entry, Mapping) else {}
    name, folder, split = values.get("filename"), values.get("filepath", ""), values.get("split")
    sentences = values.get("sentences")
    if not (isinstance(name, str) and isinstance(folder, str) and isinstance(split, str)):
        raise DataError(f"{where} needs texts filename and split")
    if not isinstance(sentences, list) or not all(
        isinstance(sentence, Mapping) and isinstance(sentence.get("raw"), str) for sentence in sentences
    ):
        raise DataError(f"{where} needs a list sentences of objects with a text raw")
    return Captioned(os.path.join(folder, name), _cleaned(sentence["raw"] for sentence in sentences), split)


def _of_coco(content: Any, path: Path) -> list[Captioned]:
    files = dict(_entries(content, path, "images", "id", "file_name"))
    written: dict[int | str, list[str]] = {number: [] for number in files}
    for number, caption in _entries(content, path, "annotations", "image_id", "caption"):
        if number not in files:
            raise DataError(f"{path}: a caption is of image_id={number}, which no image has")
        written[number].append(caption)
    return [Captioned(file, _cleaned(written[number])) for number, file in files.items()]


def _entries(content: Any, path: Path, part: str, number: str, text: str) -> list[tuple[int | str, str]]:
    entries = content.get(part) if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list {part!r}; it has to be COCO's json of captions")
    pairs: list[tuple[int | str, str]] = []
    for row, entry in enumerate(entries):
        found = (entry.get(number), entry.get(text)) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(found[0], int | str) or not isinstance(found[1], str):
            raise DataError(f"{path}: entry {row} of {part} needs a number {number} and a text {text}")
        pairs.append((found[0], found[1]))
    return pairs


def _cleaned(captions: Any) -> list[str]:
    """On one line each, without empty ones."""
    return [" ".join(caption.split()) for caption in captions if caption.strip()]
