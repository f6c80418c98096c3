"""Images that lie as plain files, for benchmarks that publish their annotations alone."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vlm.data.images import UnreadableImageError, open_image
from vlm.data.reader import EvalBatch
from vlm.data.transforms import Preprocess
from vlm.data.workers import Numbered, NumberedLoader
from vlm.errors import DataError


class ImageFile(NamedTuple):
    """An image file, or a part of it."""

    path: str
    box: tuple[float, float, float, float] | None = None
    """Left, top, width and height of the part, in pixels; what lies outside the image is black."""

    def open(self) -> Image.Image:
        """The image or its part.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                image = open_image(file.read())
            return image if self.box is None else _part(image, self.box)
        except (OSError, UnreadableImageError) as error:
            raise DataError(f"{self.path} cannot be evaluated: {error}") from error


def _part(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    left, top, width, height = (round(value) for value in box)
    try:
        return image.crop((left, top, left + max(1, width), top + max(1, height)))
    except Exception as error:  # it decodes the pixels, and damaged ones raise almost anything
        raise UnreadableImageError(str(error) or type(error).__name__) from error


class ImageFileBatches(Numbered[EvalBatch]):
    """Batch j of a list of image files for every j ≡ rank modulo the number of ranks.

    Of a record the `key` is the path; where the file is no image, it stands there as a blank one, and
    `unreadable` says why.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        preprocess: Preprocess,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        num_batches = -(-len(files) // batch_size)
        super().__init__(0, -(-num_batches // world_size))
        self._files = files
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def items(self, numbers: range) -> Iterator[EvalBatch]:
        """Make the batches that are this rank's first, second, …"""
        side = self._preprocess.image_size
        for number in numbers:
            start = (number * self._world_size + self._rank) * self._batch_size
            rows = range(start, min(start + self._batch_size, len(self._files)))
            blank = torch.zeros(3, side, side, dtype=torch.uint8)
            images: list[UInt8[Tensor, "3 h w"]] = []
            records: list[dict[str, Any]] = []
            for row in rows:
                record = {"key": self._files[row].path}
                try:
                    images.append(self._pixels(self._files[row]))
                except DataError as error:
                    images.append(blank)
                    record["unreadable"] = str(error)
                records.append(record)
            yield EvalBatch(torch.tensor(rows, dtype=torch.int64), torch.stack(images or [blank]), records)

    def _pixels(self, file: ImageFile) -> UInt8[Tensor, "3 h w"]:
        try:
            return self._preprocess(file.open())
        except UnreadableImageError as error:
            raise DataError(f"{file.path} cannot be evaluated: {error}") from error


def image_file_loader(
    files: Sequence[ImageFile],
    preprocess: Preprocess,
    *,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
) -> NumberedLoader[EvalBatch]:
    """This rank's batches of a list of image files; every rank gets the same number of them."""
    batches = ImageFileBatches(files, preprocess, batch_size=batch_size, rank=rank, world_size=world_size)
    return NumberedLoader(batches, num_workers=num_workers)
