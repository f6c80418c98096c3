"""Where pictures with reference captions come from: shards, or COCO's files of captions."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float64, Int64
from numpy import ndarray

from vlm.data import ImageFile
from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import Patterns, patterns, records_of
from vlm.evaluation.fields import every_caption, read_text
from vlm.inference import Decoding, Embedder

logger = logging.getLogger(__name__)

Likelihood = tuple[Float64[ndarray, " m"], Int64[ndarray, " m"]]
"""Of each caption of each picture, in their order: nats, and the tokens that these are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The captions that people wrote for each picture, in the order of the pictures."""

    captions: list[list[str]]
    """At least one each."""
    num_missing: int = 0
    """Pictures with captions whose files are absent."""
    num_left_out: int = 0
    """Pictures without captions."""


@runtime_checkable
class CaptionSource(Protocol):
    """Something that pictures and their reference captions are read from."""

    def read(self) -> References:
        """The captions; the pictures are not read."""
        ...

    def captions(self, embedder: Embedder, decoding: Decoding) -> Sequence[str | None]:
        """What the model writes about each picture; None where the picture cannot be read."""
        ...

    def likelihood(self, embedder: Embedder, references: References) -> Likelihood | None:
        """How surprised the model is by the references; None where that cannot be asked."""
        ...

    def shown(self, positions: Sequence[int]) -> dict[str, Any]:
        """Where a report finds these pictures, as `Result.details` has it."""
        ...


class CaptionsFromShards:
    """Pictures and captions of the samples of shards.

    Args:
        shards: pattern, or list of patterns.
        captions: fields of a sample that hold its captions, as `Retrieval` takes them; every one is a
            reference.
    """

    def __init__(self, shards: Patterns, captions: str | Sequence[str]) -> None:
        self.shards = shards
        self.fields = [captions] if isinstance(captions, str) else list(captions)

    def read(self) -> References:
        """Raises `DataError` where a sample has no caption."""
        return self._references

    def captions(self, embedder: Embedder, decoding: Decoding) -> list[str | None]:
        """One of each sample."""
        return embedder.captions(patterns(self.shards), decoding)

    def likelihood(self, embedder: Embedder, references: References) -> Likelihood:
        """Of every caption."""
        asked = patterns(self.shards), references.captions
        return embedder.caption_likelihood(*asked)

    def shown(self, positions: Sequence[int]) -> dict[str, Any]:
        """The shards; a picture is its position."""
        return {"shards": patterns(self.shards)}

    @cached_property
    def _references(self) -> References:
        records = records_of(self.shards, key="captions.shards")
        return References(captions=[every_caption(record, self.fields) for record in records])


class CaptionsFromCoco:
    """Pictures and captions in COCO's layout: a folder of images and a json with `images` and `annotations`.

    Args:
        annotations: the json, such as `captions_val2017.json`.
        images: folder of the pictures that it names.
    """

    def __init__(self, annotations: str, images: str) -> None:
        self.annotations = Path(annotations)
        self.images = Path(images)

    def read(self) -> References:
        """Raises `ConfigError`, `DataError`: no file or folder; another format; all pictures missing."""
        return self._found[0]

    def captions(self, embedder: Embedder, decoding: Decoding) -> Sequence[str | None]:
        """One of each picture that has references, in the order of the file.

        Raises:
            DataError: no picture can be read.
        """
        found: Sequence[str | None] = embedder.captions_of_files(self._found[1], decoding)
        unreadable = found.count(None)
        if unreadable == len(found):
            raise DataError(f"captions.images={self.images}: none of {len(found)} pictures can be read")
        if unreadable and embedder.topology.is_main:
            first = self._found[1][found.index(None)].path
            logger.warning("%d of %d pictures are left out, the first is %s", unreadable, len(found), first)
        return found

    def likelihood(self, embedder: Embedder, references: References) -> None:
        """None: likelihoods are measured on shards alone."""

    def shown(self, positions: Sequence[int]) -> dict[str, Any]:
        """The files of these pictures."""
        return {"files": {position: self._found[1][position] for position in positions}}

    @cached_property
    def _found(self) -> tuple[References, list[ImageFile]]:
        if not self.images.is_dir():
            raise ConfigError(f"captions.images={self.images}: no such folder; name that of the pictures")
        written, files = self._content()
        captioned = [number for number in files if number in written]
        present = [number for number in captioned if (self.images / files[number]).is_file()]
        missing = len(captioned) - len(present)
        if not present:
            first = f", the first would be {self.images / files[captioned[0]]}" if captioned else ""
            raise DataError(
                f"captions.images={self.images}: none of the {len(captioned)} pictures with captions in "
                f"{self.annotations} is there{first}"
            )
        if missing:
            logger.warning("%d of %d pictures are left out: their files are missing", missing, len(captioned))
        references = References(
            captions=[written[number] for number in present],
            num_missing=missing,
            num_left_out=len(files) - len(captioned),
        )
        return references, [ImageFile(str(self.images / files[number])) for number in present]

    def _content(self) -> tuple[dict[Any, list[str]], dict[Any, str]]:
        """The captions of each number of a picture, and its file."""
        if not self.annotations.is_file():
            raise ConfigError(
                f"captions.annotations={self.annotations}: no such file; name COCO's json of captions"
            )
        try:
            content = json.loads(read_text(self.annotations))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.annotations} is no json: {error}") from error
        files = dict(self._entries(content, "images", "id", "file_name"))
        written: dict[Any, list[str]] = {}
        for number, caption in self._entries(content, "annotations", "image_id", "caption"):
            if number not in files:
                raise DataError(f"{self.annotations}: a caption is of image_id={number}, which no image has")
            if caption.strip():
                written.setdefault(number, []).append(" ".join(caption.split()))
        return written, files

    def _entries(self, content: Any, part: str, number: str, text: str) -> list[tuple[int | str, str]]:
        entries = content.get(part) if isinstance(content, Mapping) else None
        if not isinstance(entries, list):
            raise DataError(f"{self.annotations} has no list {part!r}; it has to be COCO's json of captions")
        pairs: list[tuple[int | str, str]] = []
        for place, entry in enumerate(entries):
            found = (entry.get(number), entry.get(text)) if isinstance(entry, Mapping) else (None, None)
            if not isinstance(found[0], int | str) or not isinstance(found[1], str):
                raise DataError(
                    f"{self.annotations}: entry {place} of {part} needs a number {number} and a text {text}"
                )
            pairs.append((found[0], found[1]))
        return pairs
