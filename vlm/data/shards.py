"""A set of shards as one long row of samples."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy import ndarray

from vlm.data.index import read_offsets, shard_sizes
from vlm.data.sources import expand_shards
from vlm.data.tar import RawSample, TarReader, open_shard
from vlm.errors import DataError

_REINDEX = "if the shard was replaced, delete sizes.json and its .index.parquet to have it indexed again"


@dataclass(frozen=True)
class ShardSet:
    """Shards in order, and how many samples each has."""

    urls: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        """Samples of all shards together."""
        return sum(self.sizes)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Counts, and a digest of file names and counts in their order; the folder does not matter."""
        named = [[url.rpartition("/")[2], size] for url, size in zip(self.urls, self.sizes, strict=True)]
        digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()
        return {"shards": len(self.urls), "samples": self.num_samples, "sha256": digest}

    def locate(self, row: int) -> tuple[int, int]:
        """Shard of a row of the whole set, and its row within the shard."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - int(self._ends[shard] - self.sizes[shard])

    @cached_property
    def _ends(self) -> ndarray:
        return np.cumsum(self.sizes)


def open_shards(patterns: str | Sequence[str], *, key: str) -> ShardSet:
    """Find shards by patterns and count their samples, indexing them if nobody has yet.

    Args:
        key: the configuration key of the patterns, for messages.

    Raises:
        DataError: a pattern matches nothing, or a shard cannot be read.
    """
    urls = expand_shards(patterns, key=key)
    return ShardSet(urls, shard_sizes(urls))


class ShardCursor:
    """Reads samples at any place; cheap where places follow each other.

    Args:
        members: extensions of the members to read; None reads all.
    """

    def __init__(self, shards: ShardSet, members: frozenset[str] | None) -> None:
        self._shards = shards
        self._members = members
        self._reader: TarReader | None = None
        self._offsets: ndarray | None = None
        self._shard = self._row = 0

    def read(self, shard: int, row: int) -> RawSample:
        """The sample at a row of a shard.

        Raises:
            DataError: the shard cannot be read, or is shorter than its index says.
        """
        url = self._shards.urls[shard]
        try:
            sample = self._move_to(shard, row).read()
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{url} cannot be read at sample {row}: {reason}; {_REINDEX}") from error
        if sample is None:
            size = self._shards.sizes[shard]
            raise DataError(f"{url} ends before sample {row}, its index names {size} samples; {_REINDEX}")
        self._row += 1
        return sample

    def close(self) -> None:
        """Close the open shard."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._offsets = None

    def _move_to(self, shard: int, row: int) -> TarReader:
        reader = self._reader
        if reader is None or shard != self._shard or row < self._row:
            self.close()
            url = self._shards.urls[shard]
            reader = TarReader(open_shard(url), url=url, members=self._members)
            self._reader, self._shard, self._row = reader, shard, 0
        if row > self._row:
            self._skip_to(reader, row)
            self._row = row
        return reader

    def _skip_to(self, reader: TarReader, row: int) -> None:
        if self._offsets is None:
            self._offsets = read_offsets(self._shards.urls[self._shard])
        if self._offsets is not None and row < len(self._offsets):
            reader.seek(int(self._offsets[row]))
        else:
            reader.skip(row - self._row)
