"""Bytes of a shard, wherever it lives, and the samples in them.

A reader of our own because it is the hot path: the standard library spends more on a tar header than
Pillow spends on a small image.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from vlm.data.cache import ShardCache
from vlm.data.remote import DEFAULT_REMOTE, PIPE, Remote, open_remote

_BLOCK = 512
_BUFFER = 1 << 18

# A header may promise any number of bytes; no image and no caption has more.
_LARGEST_MEMBER = 1 << 30


class RawSample(NamedTuple):
    """The undecoded members of one sample by their extension in lower case."""

    shard: str
    key: str
    members: dict[str, bytes]
    beside: Mapping[str, Any] = {}
    """From the shard's sidecars, where some are read: `labels`, `negatives`."""

    @property
    def name(self) -> str:
        """Shard and member, for messages."""
        return f"{self.shard}/{self.key}"


class _Member(NamedTuple):
    start: int
    key: str
    extension: str
    size: int


class CutError(ValueError):
    """A tar that ends too early."""


DAMAGE = (ValueError, EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, struct.error)
"""What reading a damaged tar may raise."""


class _Gunzip(io.RawIOBase):
    """The bytes in a gzip file, up to where it is damaged: GzipFile would keep back what it read ahead."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__()
        self._file = file
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._gzip.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._gzip.close()
            self._file.close()
        super().close()


def is_local(url: str) -> bool:
    """Whether a shard is a path of this machine."""
    return "://" not in url and not url.startswith(PIPE)


def open_shard(
    url: str, *, remote: Remote = DEFAULT_REMOTE, cache: ShardCache | None = None
) -> io.BufferedReader:
    """The bytes of a tar, unzipped if need be: a path, a URL that fsspec knows, or `pipe:command`.

    Opening and reading may raise FileNotFoundError, StoreError, and what the disk raises.
    """
    file: io.BufferedReader = io.BufferedReader(_open_bytes(url, remote, cache), _BUFFER)
    if file.peek(2)[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Gunzip(file), _BUFFER)
    return file


def is_compressed(file: io.BufferedReader) -> bool:
    """Whether `open_shard` put a decompressor in between, so that offsets into the file mean nothing."""
    return isinstance(file.raw, _Gunzip)


def _open_bytes(url: str, remote: Remote, cache: ShardCache | None) -> io.RawIOBase:
    if is_local(url):
        return io.FileIO(url)
    cached = cache.open(url, remote=remote) if cache and not url.startswith(PIPE) else None
    return cached or open_remote(url, remote=remote)


class TarReader:
    """Reads the samples of one tar one after another.

    A sample is a run of adjacent files whose paths agree up to the first dot of the base name, and whose
    extensions differ; what has no such dot, is hidden or is no regular file belongs to no sample.

    Args:
        file: a tar's bytes from their beginning; closed with the reader.
        url: for messages.
        members: extensions to keep, the bytes of others are skipped; None keeps all.
    """

    def __init__(self, file: io.BufferedReader, *, url: str, members: frozenset[str] | None) -> None:
        self._file = file
        self._url = url
        self._members = members
        self._seekable = file.seekable()
        self._offset = 0
        self._damage: Exception | None = None
        self._has_end = False
        self._next = self._read_member()

    @property
    def damaged(self) -> bool:
        """Whether what follows the last sample cannot be read on; the next read says why."""
        return self._damage is not None

    @property
    def has_end(self) -> bool:
        """Whether the two empty blocks were found with which a whole tar ends."""
        return self._has_end

    @property
    def sample_offset(self) -> int:
        """Where the next sample begins; after the last one, where the archive ends."""
        return self._next.start if self._next else self._offset

    def close(self) -> None:
        """Close the file under the reader."""
        self._file.close()

    def read(self) -> RawSample | None:
        """The next sample, or None at the end."""
        return self._read_sample(self._members)

    def skip(self, count: int) -> None:
        """Pass over the next samples without keeping their bytes."""
        for _ in range(count):
            self._read_sample(frozenset())

    def seek(self, offset: int) -> None:
        """Go on at the sample that begins at byte `offset`, which lies ahead."""
        if offset == self.sample_offset:
            return
        self._pass_over(offset - self._offset)
        self._next = self._read_member()

    def _read_sample(self, members: frozenset[str] | None) -> RawSample | None:
        if self._damage:
            raise self._damage
        member = self._next
        if member is None:
            return None
        sample = RawSample(self._url, member.key, {})
        seen: set[str] = set()
        # A second file of one name is another sample's, or those of a whole shard of one key would be lost.
        while member is not None and member.key == sample.key and member.extension not in seen:
            seen.add(member.extension)
            padding = -member.size % _BLOCK
            if members is None or member.extension in members:
                sample.members[member.extension] = self._take(member.size)
                self._pass_over(padding)
            else:
                self._pass_over(member.size + padding)
            try:
                member = self._read_member()
            except DAMAGE as error:  # of what follows: what has been read is whole
                self._damage, member = error, None
        self._next = member
        return sample

    def _read_member(self) -> _Member | None:
        """Read headers up to the next file of a sample and stop at its bytes."""
        start, long_name = self._offset, None
        while header := self._read_header():
            kind, name, size = header
            if kind in b"Lx":
                long_name = self._read_long_name(kind, size) or long_name
                continue
            parts = _split_name(long_name or name) if kind in b"0\0" else None
            if parts is not None:
                return _Member(start, *parts, size)
            self._pass_over(size + -size % _BLOCK)
            start, long_name = self._offset, None
        return None

    def _read_header(self) -> tuple[bytes, str, int] | None:
        """Type, name and size of the next header, or None at the end of the archive."""
        header = self._file.read(_BLOCK)
        if not header.rstrip(b"\0"):
            self._read_end(header)
            return None
        checksum = b"%o" % (sum(header) - sum(header[148:156]) + 8 * ord(" "))
        if len(header) < _BLOCK:
            raise CutError(f"the file ends at byte {self._offset + len(header)}, within a header")
        if header[148:156].strip(b" \0").lstrip(b"0") != checksum:
            raise ValueError(f"no tar header at byte {self._offset}")
        self._offset += _BLOCK
        size = tarfile.nti(header[124:136])  # type: ignore[attr-defined]
        if not 0 <= size <= _LARGEST_MEMBER:
            raise ValueError(f"a member of {size} bytes at byte {self._offset}")
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        return header[156:157], _text(name), size

    def _read_end(self, block: bytes) -> None:
        """Look behind the first empty block: a piece that a disk lost is zeros as well."""
        rest = self._file.read(_BUFFER)
        if rest.strip(b"\0"):
            raise ValueError(f"zeros in the place of a header at byte {self._offset}, with more behind them")
        self._has_end = len(block) + len(rest) >= 2 * _BLOCK

    def _read_long_name(self, kind: bytes, size: int) -> str | None:
        data = self._take(size)
        self._pass_over(-size % _BLOCK)
        return _text(data.rstrip(b"\0")) if kind == b"L" else _pax_path(data)

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise CutError(f"the file ends at byte {self._offset + len(data)}, within a member")
        self._offset += size
        return data

    def _pass_over(self, size: int) -> None:
        self._offset += size
        if self._seekable:
            self._file.seek(size, io.SEEK_CUR)
            return
        while size > 0 and (data := self._file.read(min(size, _BUFFER))):
            size -= len(data)


def _text(name: bytes) -> str:
    # Names in another encoding stay different from each other, and can be written to any log and file.
    return name.decode("utf-8", "backslashreplace")


def _split_name(path: str) -> tuple[str, str] | None:
    """Sample key and lower-case extension, parted at the first dot of the base name."""
    base = path[path.rfind("/") + 1 :]
    stem, _, extension = base.partition(".")
    if not stem or not extension:
        return None
    return path[: len(path) - len(extension) - 1], extension.lower()


def _pax_path(data: bytes) -> str | None:
    """The `path` record of a pax header, whose records read "length key=value\\n"."""
    while data:
        length = int(data.partition(b" ")[0])
        if length < 1:
            raise ValueError("a pax header whose records do not end")
        field, _, value = data[:length].partition(b" ")[2].partition(b"=")
        if field == b"path":
            return _text(value.rstrip(b"\n"))
        data = data[length:]
    return None
