"""A set of shards as one long row of samples."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy import ndarray

from vlm.broken import BrokenSample, Cause
from vlm.data.cache import ShardCache
from vlm.data.index import SIZES, offsets_name, read_offsets, shard_sizes
from vlm.data.remote import DEFAULT_REMOTE, Remote, StoreError, contact
from vlm.data.sources import expand_shards
from vlm.data.tar import DAMAGE, CutError, RawSample, TarReader, is_local, open_shard
from vlm.errors import DataError, VlmError

logger = logging.getLogger(__name__)

_THREADS = 32  # of requests that wait for a network disk
_GONE = "is not there any more"
_REINDEX = "if the shard was replaced, delete sizes.json and its .index.parquet to have it indexed again"


class BrokenShardError(DataError):
    """A sample that will not come back by waiting: what its shard holds is not what the index names."""

    cause: ClassVar[Cause]


class DamagedShardError(BrokenShardError):
    """The tar is damaged or cut off at the sample."""

    cause = Cause.DAMAGED_SHARD


class MissingShardError(BrokenShardError):
    """The shard is not there any more."""

    cause = Cause.MISSING_SHARD


@dataclass(frozen=True)
class ShardSet:
    """Shards in order, how many samples each has, and how they are read if they are not local."""

    urls: tuple[str, ...]
    sizes: tuple[int, ...]
    remote: Remote = DEFAULT_REMOTE
    cache: ShardCache | None = None

    @property
    def num_samples(self) -> int:
        """Samples of all shards together."""
        return sum(self.sizes)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Counts, and a digest of file names and counts in their order; the folder does not matter.

        Where all shards are local files also their bytes together, and a digest of the bytes of each.
        """
        named = [[url.rpartition("/")[2], size] for url, size in zip(self.urls, self.sizes, strict=True)]
        known = {"shards": len(self.urls), "samples": self.num_samples, "sha256": _digest(named)}
        if not all(map(is_local, self.urls)):  # asking a store for each would take minutes
            return known
        with ThreadPoolExecutor(_THREADS) as threads:
            num_bytes = list(threads.map(_file_size, self.urls))
        return known | {"bytes": sum(num_bytes), "bytes_sha256": _digest(num_bytes)}

    def locate(self, row: int) -> tuple[int, int]:
        """Shard of a row of the whole set, and its row within the shard."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - int(self._ends[shard] - self.sizes[shard])

    @cached_property
    def _ends(self) -> ndarray:
        return np.cumsum(self.sizes)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def open_shards(
    patterns: str | Sequence[str],
    *,
    key: str,
    remote: Remote = DEFAULT_REMOTE,
    cache: ShardCache | None = None,
) -> ShardSet:
    """Find shards by patterns and count their samples, indexing them if nobody has yet.

    Args:
        key: the configuration key of the patterns, for messages.

    Raises:
        DataError: a pattern matches nothing, or a shard cannot be read.
    """
    urls = expand_shards(patterns, key=key, remote=remote)
    distant = [url for url in urls if not is_local(url)]
    if distant:
        contact(distant[0], key=key, remote=remote)
    return ShardSet(urls, shard_sizes(urls, remote=remote), remote, cache)


@runtime_checkable
class Rows(Protocol):
    """A row for each sample of a shard."""

    def __getitem__(self, row: int) -> Any: ...


class ShardCursor:
    """Reads samples at any place; cheap where places follow each other.

    Args:
        members: extensions of the members to read; None reads all.
        beside: by name, what reads a shard's sidecar; each sample gets its own row.
    """

    def __init__(
        self,
        shards: ShardSet,
        members: frozenset[str] | None,
        beside: Mapping[str, Callable[[int], Rows]] = {},
    ) -> None:
        self._shards = shards
        self._members = members
        self._beside = beside
        self._rows: dict[str, Rows] = {}
        self._rows_of: int | None = None
        self._reader: TarReader | None = None
        self._offsets: ndarray | None = None
        self._shard = self._row = 0
        self._lost: tuple[int, int, BrokenShardError] | None = None

    def read(self, shard: int, row: int) -> RawSample:
        """The sample at a row of a shard.

        Raises:
            BrokenShardError: the shard is gone, damaged there, or shorter than its index says.
            DataError: the shard cannot be read just now.
        """
        if self._lost and self.is_lost(shard, row):
            raise self._lost[2].with_traceback(None)  # it would grow with each sample that is asked for
        url = self._shards.urls[shard]
        try:
            sample = self._move_to(shard, row).read()
            if sample is None:
                raise CutError(f"it ends there, its index names {self._shards.sizes[shard]} samples")
        except FileNotFoundError as error:
            reason = f"{url} {_GONE}; restore it, or name other shards"
            raise self._lose(MissingShardError(reason), shard, 0) from error
        except DAMAGE as error:
            damaged = DamagedShardError(f"{url} cannot be read at sample {row}: {error}; {_REINDEX}")
            if isinstance(error, CutError | EOFError) or not self._has_offset(row + 1):
                self._lose(damaged, shard, row)
            self.close()
            raise damaged from error
        except VlmError:
            raise
        except StoreError as error:
            raise DataError(
                f"{url} cannot be read at sample {row}: {error}; when it can be read again, go on with "
                f"run.resume=true; data.remote.retries_s={self._shards.remote.retries_s:g} is how long to try"
            ) from error
        except Exception as error:  # whatever a disk or a client may raise
            reason = str(error) or type(error).__name__
            raise DataError(f"{url} cannot be read at sample {row}: {reason}") from error
        self._row += 1
        if row == self._shards.sizes[shard] - 1:
            self._warn_of_more(url)
        return sample._replace(beside=self._beside_of(shard, row)) if self._beside else sample

    def _warn_of_more(self, url: str) -> None:
        """Behind the last sample: a shard that has grown since it was indexed is read in part."""
        assert self._reader is not None
        try:
            more = self._reader.read()
        except Exception:  # nobody asked for what is there
            more = None
        if more is not None:
            logger.warning(
                "%s holds more samples than the %d of its index, and they are not read; %s",
                *(url, self._shards.sizes[self._shard], _REINDEX),
            )

    def try_read(self, shard: int, row: int) -> RawSample | BrokenSample:
        """The sample at a row of a shard, or why it will not come back by waiting.

        Raises:
            DataError: the shard cannot be read just now.
        """
        try:
            return self.read(shard, row)
        except BrokenShardError as error:
            reason = _GONE if error.cause is Cause.MISSING_SHARD else str(error.__cause__)
            return BrokenSample(error.cause, self._shards.urls[shard], f"sample {row}", reason)

    def try_read_row(self, row: int) -> RawSample | BrokenSample:
        """The sample at a row of the whole set, as `try_read`."""
        return self.try_read(*self._shards.locate(row))

    def is_lost(self, shard: int, row: int) -> bool:
        """Whether it is known that neither this sample of a shard nor any behind it can be read."""
        return self._lost is not None and self._lost[0] == shard and row >= self._lost[1]

    def close(self) -> None:
        """Close the open shard."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._offsets = None

    def _beside_of(self, shard: int, row: int) -> dict[str, Any]:
        if self._rows_of != shard:
            self._rows = {name: read(shard) for name, read in self._beside.items()}
            self._rows_of = shard
        return {name: rows[row] for name, rows in self._rows.items()}

    def _lose(self, error: BrokenShardError, shard: int, row: int) -> BrokenShardError:
        """Give up what follows: each further sample would cost as much, and end the same."""
        self._lost = shard, row, error
        self.close()
        return error

    def _move_to(self, shard: int, row: int) -> TarReader:
        reader = self._reader
        if reader is None or reader.damaged or shard != self._shard or row < self._row:
            self.close()
            url = self._shards.urls[shard]
            file = open_shard(url, remote=self._shards.remote, cache=self._shards.cache)
            reader = TarReader(file, url=url, members=self._members)
            self._reader, self._shard, self._row = reader, shard, 0
        if row > self._row:
            self._skip_to(reader, row)
            self._row = row
        return reader

    def _skip_to(self, reader: TarReader, row: int) -> None:
        if self._has_offset(row):
            assert self._offsets is not None
            reader.seek(int(self._offsets[row]))
        else:
            reader.skip(row - self._row)

    def _has_offset(self, row: int) -> bool:
        if self._offsets is None:
            url = self._shards.urls[self._shard]
            self._offsets = read_offsets(url, remote=self._shards.remote)
            size = self._shards.sizes[self._shard]
            if self._offsets is not None and len(self._offsets) != size:
                raise DataError(
                    f"the index of {url} contradicts itself: {SIZES} says {size} samples, "
                    f"{offsets_name(url)} has {len(self._offsets)} rows; correct it by vlm shards index"
                )
        return self._offsets is not None and row < len(self._offsets)
