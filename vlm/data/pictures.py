"""The pictures of some shards in their stored order, batches within shards, broken ones counted."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from vlm.broken import BrokenSample
from vlm.data.images import UnreadableImageError
from vlm.data.samples import IMAGE_EXTENSIONS, BrokenSampleError, sample_image
from vlm.data.shards import DamagedShardError, ShardCursor, ShardSet
from vlm.data.transforms import Preprocess
from vlm.data.workers import Numbered, NumberedLoader


class PictureBatch(NamedTuple):
    """Rows start … start + n − 1 of a shard."""

    shard: int
    start: int
    images: UInt8[Tensor, "n 3 h w"]
    """Black where the picture cannot be read."""
    broken: dict[int, BrokenSample]
    """By row of the shard."""


class PictureBatches(Numbered[PictureBatch]):
    """Batches that never reach over the end of a shard: what one holds depends on its shard alone."""

    def __init__(
        self, shards: ShardSet, chosen: Sequence[int], preprocess: Preprocess, *, batch_size: int
    ) -> None:
        self._places = [
            (shard, start) for shard in chosen for start in range(0, shards.sizes[shard], batch_size)
        ]
        super().__init__(0, len(self._places))
        self._shards = shards
        self._preprocess = preprocess
        self._batch_size = batch_size

    def items(self, numbers: range) -> Iterator[PictureBatch]:
        """Make the batches with these numbers."""
        cursor = ShardCursor(self._shards, frozenset(IMAGE_EXTENSIONS))
        for number in numbers:
            shard, start = self._places[number]
            stop = min(start + self._batch_size, self._shards.sizes[shard])
            yield self._batch(cursor, shard, range(start, stop))
        cursor.close()

    def _batch(self, cursor: ShardCursor, shard: int, rows: range) -> PictureBatch:
        side = self._preprocess.image_size
        images = torch.zeros(len(rows), 3, side, side, dtype=torch.uint8)
        broken: dict[int, BrokenSample] = {}
        for row in rows:
            found = self._picture(cursor, shard, row)
            if isinstance(found, BrokenSample):
                broken[row] = found
            else:
                images[row - rows.start] = found
        return PictureBatch(shard, rows.start, images, broken)

    def _picture(self, cursor: ShardCursor, shard: int, row: int) -> UInt8[Tensor, "3 h w"] | BrokenSample:
        """The pixels of a sample, or why there are none; a shard that is gone stops the work."""
        url, key = self._shards.urls[shard], f"sample {row}"
        try:
            raw = cursor.read(shard, row)
            key = raw.key
            return self._preprocess(sample_image(raw))
        except DamagedShardError as error:
            return BrokenSample(error.cause, url, key, str(error.__cause__))
        except (BrokenSampleError, UnreadableImageError) as error:
            return BrokenSample(error.cause, url, key, str(error))


def picture_loader(
    shards: ShardSet, chosen: Sequence[int], preprocess: Preprocess, *, batch_size: int, num_workers: int
) -> NumberedLoader[PictureBatch]:
    """The pictures of the shards with these numbers, in their order.

    Raises:
        DataError: while iterating, where a shard is gone or cannot be read just now.
    """
    batches = PictureBatches(shards, chosen, preprocess, batch_size=batch_size)
    return NumberedLoader(batches, num_workers=num_workers)
