"""A folder that keeps whole shards of a store on this machine, up to a number of bytes.

fsspec has caches of whole files, but none that is bounded, nor one whose downloads are safe from a second
process. Here a shard is one file, named after its URL and what the server says of its version, so that a
changed shard is another file. Locks on the files say who uses them: a reader shares one, a download has one
alone, and what nobody holds may go. They end with their process, however it ends.
"""

import fcntl
import hashlib
import io
import logging
import math
import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from vlm.data.remote import Remote, file_info, open_remote
from vlm.errors import ConfigError

logger = logging.getLogger(__name__)

_OURS = re.compile(r"[0-9a-f]{32}\.shard(\.[0-9a-f]{32}\.part)?")
_CHUNK = 1 << 22


@dataclass(kw_only=True)
class ShardCache:
    """Keeps shards that were read from a URL; any number of processes may share the folder.

    Args:
        folder: on a disk of this machine; null keeps nothing.
        max_gib: how much the folder may hold; the shards that were not used for longest make room.
    """

    folder: str | None
    max_gib: int | float
    _warned: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.max_gib < math.inf:
            raise ConfigError(f"data.cache.max_gib={self.max_gib} must be a positive number")

    def open(self, url: str, *, remote: Remote) -> io.FileIO | None:
        """The shard as a local file, fetched first if it is not there; None where it cannot be kept.

        Raises:
            FileNotFoundError, StoreError: the store does not have it, or does not answer.
        """
        if self.folder is None:
            return None
        size, version = file_info(url, remote=remote)
        if size is None:
            self._go_without(url, "the server does not say how large it is")
            return None
        name = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32]
        path = Path(self.folder) / f"{name}.shard"
        try:
            return _open_kept(path, size) or self._fetch(url, path, size, remote)
        except OSError as error:
            self._go_without(url, error.strerror or str(error))
            return None

    def _fetch(self, url: str, path: Path, size: int, remote: Remote) -> io.FileIO | None:
        locks = path.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / path.name[:3]):  # others that want this shard wait for it
            kept = _open_kept(path, size)
            if kept:
                return kept
            with FileLock(locks / "room"):
                if not self._make_room(path.parent, size):
                    reason = f"data.cache.max_gib={self.max_gib:g} has no room beside the shards in use"
                    self._go_without(url, reason)
                    return None
                part = _Part(path, size)
            with part:
                with open_remote(url, remote=remote) as source:
                    while data := source.read(_CHUNK):
                        part.write(data)
                part.finish()
        return _open_kept(path, size)

    def _make_room(self, folder: Path, size: int) -> bool:
        """Remove what nobody uses, the oldest first, until `size` more bytes fit."""
        if size > self.max_gib * 2**30:
            return False
        found = []
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if _OURS.fullmatch(path.name):
                    stat = path.stat()
                    found.append((path.suffix != ".part", stat.st_mtime, path, stat.st_size))
        excess = size + sum(held for *_, held in found) - int(self.max_gib * 2**30)
        for complete, _, path, held in sorted(found):
            # a part that nobody holds was left by a process that was killed
            if (excess > 0 or not complete) and _remove_unused(path):
                excess -= held
        return excess <= 0

    def _go_without(self, url: str, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("data.cache.folder=%s: %s is read without a copy: %s", self.folder, url, reason)


class _Part:
    """A file under a name of its own until it is whole."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        self._file = self._draft.open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            if size:
                os.posix_fallocate(self._file.fileno(), 0, size)  # a full disk shows now
        except OSError:
            self._discard()
            raise

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """Give the file its name, if it has all its bytes."""
        self._file.flush()
        if self._file.tell() != self._size:
            raise OSError(f"the server sent {self._file.tell()} of {self._size} bytes")
        os.fsync(self._file.fileno())
        self._draft.replace(self._path)

    def _discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._draft.unlink(missing_ok=True)


def _open_kept(path: Path, size: int) -> io.FileIO | None:
    """A shard of the folder, in use until it is closed; None if it is not there."""
    try:
        file = io.FileIO(path)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        return None
    with suppress(OSError):
        now = time.time_ns()  # finer than the clock of the disk
        os.utime(path, ns=(now, now))
    return file


def _remove_unused(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
