"""Images that lie as plain files, for benchmarks that publish their annotations alone."""

import base64
import binascii
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vlm.data.images import UnreadableImageError, open_image
from vlm.data.reader import EvalBatch, RankBatches
from vlm.data.transforms import Preprocess
from vlm.data.workers import NumberedLoader
from vlm.errors import DataError

_STANDARD = bytes.maketrans(b"-_", b"+/")
"""From the alphabet of base64 for addresses to the standard one."""


class ImageFile(NamedTuple):
    """An image file, or a part of it."""

    path: str
    box: tuple[float, float, float, float] | None = None
    """Left, top, width and height of the part, in pixels; what lies outside the image is black."""
    base64: tuple[int, int] | None = None
    """Where the file holds the image as base64: the first byte, and how many."""

    def open(self) -> Image.Image:
        """The image or its part.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                image = open_image(file.read() if self.base64 is None else _decoded(file, *self.base64))
            return image if self.box is None else _part(image, self.box)
        except (OSError, UnreadableImageError) as error:
            raise DataError(f"{self.path} cannot be evaluated: {error}") from error


@dataclass(frozen=True, repr=False)
class ImageSet:
    """Images in order, and a record of each, as a sample of a shard has one: `key` and other members."""

    files: Sequence[ImageFile]
    records: Sequence[dict[str, Any]]

    def __post_init__(self) -> None:
        assert len(self.files) == len(self.records)

    def __repr__(self) -> str:
        return f"{len(self.files)} files"

    def read(self) -> "ImageSet":
        """Itself: a source that has been read."""
        return self

    def missing(self) -> list[str]:
        """The files that are not there."""
        there = {path: os.path.isfile(path) for path in {file.path for file in self.files}}
        return [file.path for file in self.files if not there[file.path]]


@runtime_checkable
class ImageSource(Protocol):
    """Something that images are read from, and what belongs to them; the images themselves are not."""

    def read(self) -> ImageSet:
        """The same each time."""
        ...


def _decoded(file: BinaryIO, first: int, count: int) -> bytes:
    file.seek(first)
    try:
        return base64.b64decode(file.read(count).translate(_STANDARD), validate=True)
    except binascii.Error as error:
        raise UnreadableImageError(f"no base64 at byte {first}: {error}") from error


def _part(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    left, top, width, height = (round(value) for value in box)
    try:
        return image.crop((left, top, left + max(1, width), top + max(1, height)))
    except Exception as error:  # it decodes the pixels, and damaged ones raise almost anything
        raise UnreadableImageError(str(error) or type(error).__name__) from error


class ImageFileBatches(RankBatches):
    """Those of a list of image files; of a record the `key` is the path.

    Args:
        unreadable: whether a file that is no image is a blank one, of whose record `unreadable` says why;
            else it is an error.

    The others are those of `RankBatches`.
    """

    def __init__(
        self, files: Sequence[ImageFile], preprocess: Preprocess, *, unreadable: bool = True, **how: int
    ) -> None:
        super().__init__(len(files), preprocess, **how)
        self._files = files
        self._unreadable = unreadable

    def items(self, numbers: range) -> Iterator[EvalBatch]:
        """Make the batches with these numbers."""
        for number in numbers:
            rows = self.rows(number)
            images: list[UInt8[Tensor, "3 h w"]] = []
            records: list[dict[str, Any]] = []
            for row in rows:
                record = {"key": self._files[row].path}
                try:
                    images.append(self._pixels(self._files[row]))
                except DataError as error:
                    if not self._unreadable:
                        raise
                    images.append(self.blank())
                    record["unreadable"] = str(error)
                records.append(record)
            yield self.batch(rows, images, records)

    def _pixels(self, file: ImageFile) -> UInt8[Tensor, "3 h w"]:
        try:
            return self.preprocess(file.open())
        except UnreadableImageError as error:
            raise DataError(f"{file.path} cannot be evaluated: {error}") from error


def image_file_loader(
    files: Sequence[ImageFile], preprocess: Preprocess, *, num_workers: int, **how: Any
) -> NumberedLoader[EvalBatch]:
    """This rank's batches of a list of image files; every rank gets the same number of them.

    Args:
        how: arguments of `ImageFileBatches`.
    """
    return NumberedLoader(ImageFileBatches(files, preprocess, **how), num_workers=num_workers)
