"""Images that lie as plain files, for benchmarks that publish their annotations alone."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vlm.data.images import UnreadableImageError, open_image
from vlm.data.reader import EvalBatch, RankBatches
from vlm.data.transforms import Preprocess
from vlm.data.workers import NumberedLoader
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


class ImageFileBatches(RankBatches):
    """Those of a list of image files; arguments as of `RankBatches`.

    Of a record the `key` is the path; where the file is no image, it stands there as a blank one, and
    `unreadable` says why.
    """

    def __init__(self, files: Sequence[ImageFile], preprocess: Preprocess, **how: int) -> None:
        super().__init__(len(files), preprocess, **how)
        self._files = files

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
    files: Sequence[ImageFile], preprocess: Preprocess, *, num_workers: int, **how: int
) -> NumberedLoader[EvalBatch]:
    """This rank's batches of a list of image files; every rank gets the same number of them.

    Args:
        how: arguments of `RankBatches`.
    """
    return NumberedLoader(ImageFileBatches(files, preprocess, **how), num_workers=num_workers)
