"""Writing WebDataset shards, each with the index from which a reader starts in its middle."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from vlm.data.index import write_offsets, write_sizes
from vlm.errors import DataError


class _OpenShard:
    """One tar being written under a temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.keys: list[str] = []
        self._offsets: list[int] = []
        self._tar = tarfile.open(self.partial, "w", format=tarfile.GNU_FORMAT, encoding="utf-8")  # noqa: SIM115

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        self.keys.append(key)
        self._offsets.append(self._tar.offset)
        for extension, content in members.items():
            # A new TarInfo has time, owner and group zero, so the bytes depend on the samples alone.
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = len(content)
            self._tar.addfile(header, io.BytesIO(content))

    def finish(self) -> None:
        ends = [*self._offsets[1:], self._tar.offset]
        self._tar.close()
        sizes = [end - start for start, end in zip(self._offsets, ends, strict=True)]
        write_offsets(self.path, self.keys, self._offsets, sizes)
        os.replace(self.partial, self.path)

    def abandon(self) -> None:
        self._tar.close()
        self.partial.unlink()


class ShardWriter:
    """Writes samples to `<prefix>00000.tar`, `<prefix>00001.tar`, …, equal bytes for equal samples.

    Each shard gets its `<stem>.index.parquet` and appears under its name only when whole; the counts are
    added to the folder's `sizes.json` at the end. After an exception the unfinished shard is removed and
    nothing is counted.

    Args:
        folder: made if it is missing.
        prefix: start of every shard's name.
        max_samples: samples in a shard; the last may have fewer.

    Raises:
        DataError: when a shard of that name exists, or a key has a dot or comes twice.
    """

    def __init__(self, folder: Path, *, prefix: str, max_samples: int) -> None:
        if max_samples < 1:
            raise DataError(f"max_samples={max_samples} must be at least 1")
        self._folder = folder
        self._prefix = prefix
        self._max_samples = max_samples
        self._counts: dict[str, int] = {}
        self._keys: set[str] = set()
        self._shard: _OpenShard | None = None

    def __enter__(self) -> "ShardWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._shard is not None:
                self._shard.abandon()
            return
        self._finish_shard()
        write_sizes(self._folder, self._counts)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: name of the sample, unique among all that this writer writes.
            members: extension (`png`, `txt`, `json`, …) -> content, in the order of the tar.
        """
        if not members:
            raise DataError(f"sample {key!r} has no members; give at least one, such as 'png'")
        if not key or "." in key.rsplit("/", 1)[-1]:
            raise DataError(f"key {key!r} is empty or has a dot, where its extension would begin; rename it")
        if key in self._keys:
            raise DataError(f"key {key!r} was written before; give every sample its own")
        self._keys.add(key)
        self._current_shard().add(key, members)

    def _current_shard(self) -> _OpenShard:
        if self._shard is not None and len(self._shard.keys) == self._max_samples:
            self._finish_shard()
        if self._shard is None:
            path = self._folder / f"{self._prefix}{len(self._counts):05d}.tar"
            if path.exists():
                raise DataError(f"{path} exists; write to an empty folder or with another prefix")
            self._shard = _OpenShard(path)
        return self._shard

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._shard.finish()
        self._counts[self._shard.path.name] = len(self._shard.keys)
        self._shard = None
