"""Data sets in their stored order, for evaluation."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from vlm.data.images import UnreadableImageError
from vlm.data.samples import IMAGE_EXTENSIONS, BrokenSampleError, decode_record, sample_image
from vlm.data.shards import ShardCursor, ShardSet
from vlm.data.tar import RawSample
from vlm.data.transforms import Preprocess
from vlm.data.workers import Numbered, NumberedLoader
from vlm.errors import DataError


class EvalBatch(NamedTuple):
    """Some rows of a data set.

    `images` has a row for each index, or one blank row where there is no index: a rank without rows runs its
    towers as often as the others.
    """

    indices: Int64[Tensor, "n"]
    images: UInt8[Tensor, "m 3 h w"]
    records: list[dict[str, Any]]


class RankBatches(Numbered[EvalBatch]):
    """Batch j of so many rows for every j ≡ rank modulo the number of ranks; a subclass makes it in `items`.

    A number is that of a batch among this rank's first, second, …

    Args:
        first: rows that are left out, at the beginning.
    """

    def __init__(
        self,
        num_rows: int,
        preprocess: Preprocess,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        first: int = 0,
    ) -> None:
        num_batches = -(-(num_rows - first) // batch_size)
        super().__init__(0, -(-num_batches // world_size))
        self._first = first
        self.preprocess = preprocess
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def rows(self, number: int) -> range:
        """The rows of a batch; none where other ranks have one more."""
        start = self._first + (number * self._world_size + self._rank) * self._batch_size
        return range(start, min(start + self._batch_size, self._num_rows))

    def batch(
        self, rows: range, images: list[UInt8[Tensor, "3 h w"]], records: list[dict[str, Any]]
    ) -> EvalBatch:
        """A batch of what its rows hold."""
        return EvalBatch(
            torch.tensor(rows, dtype=torch.int64), torch.stack(images or [self.blank()]), records
        )

    def blank(self) -> UInt8[Tensor, "3 h w"]:
        """The image that stands where there is none."""
        side = self.preprocess.image_size
        return torch.zeros(3, side, side, dtype=torch.uint8)


class EvalBatches(RankBatches):
    """Those of a data set.

    Args:
        unreadable: whether a sample whose image cannot be read is a blank one, of whose record `unreadable`
            says why; else it is an error.

    The others are those of `RankBatches`.
    """

    def __init__(
        self, shards: ShardSet, preprocess: Preprocess, *, unreadable: bool = False, **how: int
    ) -> None:
        super().__init__(shards.num_samples, preprocess, **how)
        self._shards = shards
        self._unreadable = unreadable

    def items(self, numbers: range) -> Iterator[EvalBatch]:
        """Make the batches with these numbers."""
        cursor = ShardCursor(self._shards, None)
        for number in numbers:
            rows = self.rows(number)
            raw = [cursor.read(*self._shards.locate(row)) for row in rows]
            records = [_record(sample) for sample in raw]
            images = [self._image(*pair) for pair in zip(raw, records, strict=True)]
            yield self.batch(rows, images, records)
        cursor.close()

    def _image(self, raw: RawSample, record: dict[str, Any]) -> UInt8[Tensor, "3 h w"]:
        try:
            return self._pixels(raw)
        except DataError as error:
            if not self._unreadable:
                raise
            record["unreadable"] = str(error)
            return self.blank()

    def _pixels(self, raw: RawSample) -> UInt8[Tensor, "3 h w"]:
        try:
            return self.preprocess(sample_image(raw))
        except (BrokenSampleError, UnreadableImageError) as error:
            raise DataError(f"{raw.name} cannot be evaluated: {error}") from error


def eval_loader(
    shards: ShardSet, preprocess: Preprocess, *, num_workers: int, **how: Any
) -> NumberedLoader[EvalBatch]:
    """This rank's batches of a data set; every rank gets the same number of them.

    Args:
        how: arguments of `EvalBatches`.

    Raises:
        DataError: while iterating, naming a sample whose image or text cannot be read.
    """
    return NumberedLoader(EvalBatches(shards, preprocess, **how), num_workers=num_workers)


def read_records(shards: ShardSet) -> Iterator[dict[str, Any]]:
    """Key and text members of every sample in order; images are not read.

    Raises:
        DataError: naming a sample whose text cannot be read.
    """
    cursor = ShardCursor(shards, _TEXT)
    for shard, size in enumerate(shards.sizes):
        for row in range(size):
            yield _record(cursor.read(shard, row))
    cursor.close()


def read_images(shards: ShardSet, rows: Sequence[int]) -> list[Image.Image]:
    """The images at some rows of the data set, as they are stored.

    Raises:
        DataError: naming a sample whose image cannot be read.
    """
    cursor = ShardCursor(shards, frozenset(IMAGE_EXTENSIONS))
    images = {}
    for row in sorted(set(rows)):
        raw = cursor.read(*shards.locate(row))
        try:
            images[row] = sample_image(raw)
        except BrokenSampleError as error:
            raise DataError(f"{raw.name} cannot be shown: {error}") from error
    cursor.close()
    return [images[row] for row in rows]


_TEXT = frozenset({"txt", "cls", "json", "npy"})


def _record(raw: RawSample) -> dict[str, Any]:
    try:
        return decode_record(raw)
    except BrokenSampleError as error:
        raise DataError(f"{raw.name} cannot be evaluated: {error}") from error
