"""Writing WebDataset shards, each with the index from which a reader starts in its middle."""

import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from vlm.data.index import write_offsets, write_sizes
from vlm.errors import DataError
from vlm.files import DRAFT

_BLOCK = tarfile.BLOCKSIZE
_BUFFER = 1 << 20
_NAME_BYTES = 100
_OCTAL_LIMIT = 8**11 - 1
_TEMPLATE = tarfile.TarInfo().tobuf(tarfile.GNU_FORMAT)
# What a header's bytes add up to without name and size, its checksum counted as eight spaces.
_TEMPLATE_SUM = sum(_TEMPLATE) - sum(_TEMPLATE[124:135]) - sum(_TEMPLATE[148:156]) + 8 * ord(" ")


class OpenShard:
    """One tar being written under a temporary name, `<name>.partial`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + DRAFT)
        self.keys: list[str] = []
        self.size = 0
        """Bytes of the members so far, with headers and padding."""
        self._offsets: list[int] = []
        self._file = self.partial.open("wb", buffering=_BUFFER)

    @property
    def whole_size(self) -> int:
        """Bytes of the tar when it is finished."""
        size = self.size + 2 * _BLOCK
        return size + -size % tarfile.RECORDSIZE

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample: extension -> content."""
        self.keys.append(key)
        self._offsets.append(self.size)
        for extension, content in members.items():
            parts = (_header(f"{key}.{extension}", len(content)), content, bytes(-len(content) % _BLOCK))
            self.size += self._file.write(b"".join(parts))

    def finish(self) -> None:
        """Write the index, then give the tar its name."""
        try:
            self._file.write(bytes(self.whole_size - self.size))
            self._file.close()
            sizes = [end - start for start, end in pairwise([*self._offsets, self.size])]
            write_offsets(self.path, self.keys, self._offsets, sizes)
            os.replace(self.partial, self.path)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # what is still buffered may not fit on a full disk
            self._file.close()
        self.partial.unlink(missing_ok=True)


def sample_size(members: Mapping[str, bytes]) -> int:
    """Bytes that a sample of short key takes in a tar."""
    return sum(_BLOCK + len(content) + -len(content) % _BLOCK for content in members.values())


def _header(name: str, size: int) -> bytes:
    """A tar header with time, owner and group zero, so that a shard's bytes depend on its samples alone.

    `tarfile` takes longer to make one than to write a small image, hence the template.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _NAME_BYTES or size > _OCTAL_LIMIT:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    digits = b"%011o" % size
    checksum = b"%06o" % (_TEMPLATE_SUM + sum(encoded) + sum(digits))
    name_field = encoded.ljust(_NAME_BYTES, b"\0")
    return b"".join((name_field, _TEMPLATE[100:124], digits, _TEMPLATE[135:148], checksum, _TEMPLATE[154:]))


class ShardWriter:
    """Writes samples to `<prefix>00000.tar`, `<prefix>00001.tar`, …, equal bytes for equal samples.

    Each shard gets its `<stem>.index.parquet` and appears under its name only when whole; the counts are
    added to the folder's `sizes.json` at the end. After an exception the unfinished shard is removed and
    nothing is counted.

    Args:
        folder: made if it is missing.
        prefix: start of every shard's name.
        max_samples: samples in a shard; the last may have fewer.
        max_bytes: size of a shard's members with their headers; a larger sample has a shard of its own.

    Raises:
        DataError: when a shard of that name exists, or a key has a dot or comes twice.
    """

    def __init__(self, folder: Path, *, prefix: str, max_samples: int, max_bytes: int | None = None) -> None:
        for name, value in (("max_samples", max_samples), ("max_bytes", max_bytes)):
            if value is not None and value < 1:
                raise DataError(f"{name}={value} must be at least 1")
        self._folder = folder
        self._prefix = prefix
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._counts: dict[str, int] = {}
        self._keys: set[str] = set()
        self._shard: OpenShard | None = None

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
        if self._shard is not None and self._is_full(self._shard, members):
            self._finish_shard()
        self._current_shard().add(key, members)

    def _is_full(self, shard: OpenShard, members: Mapping[str, bytes]) -> bool:
        if len(shard.keys) == self._max_samples:
            return True
        return self._max_bytes is not None and shard.size + sample_size(members) > self._max_bytes

    def _current_shard(self) -> OpenShard:
        if self._shard is None:
            path = self._folder / f"{self._prefix}{len(self._counts):05d}.tar"
            if path.exists():
                raise DataError(f"{path} exists; write to an empty folder or with another prefix")
            self._shard = OpenShard(path)
        return self._shard

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        shard, self._shard = self._shard, None
        shard.finish()
        self._counts[shard.path.name] = len(shard.keys)
