"""Where pictures with reference captions come from: shards, or COCO's files of captions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float64, Int64
from numpy import ndarray

from vlm.data import ImageFile, ImageSet, ImageSource
from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import parts, records_of
from vlm.evaluation.fields import every_caption
from vlm.evaluation.image_sources.coco import read_captions
from vlm.inference import Decoding, Embedder, Pictures

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

    def pictures(self) -> list[str | ImageSource]:
        """Where a report finds them, as `Result.details["shards"]` has it."""
        ...


class CaptionsFromShards:
    """Pictures and captions of the samples of shards.

    Args:
        shards: pattern, or list of patterns.
        captions: fields of a sample that hold its captions, as `Retrieval` takes them; every one is a
            reference.
    """

    def __init__(self, shards: Pictures, captions: str | Sequence[str]) -> None:
        self.shards = shards
        self.fields = [captions] if isinstance(captions, str) else list(captions)

    def read(self) -> References:
        """Raises `DataError` where a sample has no caption."""
        return self._references

    def captions(self, embedder: Embedder, decoding: Decoding) -> list[str | None]:
        """One of each sample."""
        return embedder.captions(self.shards, decoding)

    def likelihood(self, embedder: Embedder, references: References) -> Likelihood:
        """Of every caption."""
        return embedder.caption_likelihood(self.shards, references.captions)

    def pictures(self) -> list[str | ImageSource]:
        """The shards; a picture is its position."""
        return parts(self.shards)

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

    def pictures(self) -> list[str | ImageSource]:
        """The files of all pictures."""
        files = self._found[1]
        return [ImageSet(files, [{"key": file.path} for file in files])]

    @cached_property
    def _found(self) -> tuple[References, list[ImageFile]]:
        if not self.images.is_dir():
            raise ConfigError(f"captions.images={self.images}: no such folder; name that of the pictures")
        if not self.annotations.is_file():
            raise ConfigError(
                f"captions.annotations={self.annotations}: no such file; name COCO's json of captions"
            )
        pictures = read_captions(self.annotations)
        captioned = [picture for picture in pictures if picture.captions]
        present = [picture for picture in captioned if (self.images / picture.file).is_file()]
        missing = len(captioned) - len(present)
        if not present:
            first = f", the first would be {self.images / captioned[0].file}" if captioned else ""
            raise DataError(
                f"captions.images={self.images}: none of the {len(captioned)} pictures with captions in "
                f"{self.annotations} is there{first}"
            )
        if missing:
            logger.warning("%d of %d pictures are left out: their files are missing", missing, len(captioned))
        references = References(
            captions=[picture.captions for picture in present],
            num_missing=missing,
            num_left_out=len(pictures) - len(captioned),
        )
        return references, [ImageFile(str(self.images / picture.file)) for picture in present]
