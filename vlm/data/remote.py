"""Files behind a URL or a command: requests with a time limit, tried again as long as there is hope."""

import io
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from vlm.data.store import Command, FileInfo, NoRangesError, Store, Stream, fault_of
from vlm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIPE = "pipe:"

# Blocks grow while a file is read in order: a look at one sample is cheap, a long read needs few requests.
_FIRST_BLOCK = 1 << 18
_LARGEST_BLOCK = 1 << 22

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 20.0

# An answer that will hardly change is believed when it has come this often.
_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How patient to be with shards behind a URL or a command.

    Args:
        timeout_s: a request, of at most 4 MiB, that takes longer is given up and made again; likewise a
            command that writes nothing for so long.
        retries_s: a request that fails for so long ends the run.
    """

    timeout_s: int | float
    retries_s: int | float

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < math.inf:
            raise ConfigError(f"data.remote.timeout_s={self.timeout_s} must be a positive number of seconds")
        if not 0 <= self.retries_s < math.inf:
            raise ConfigError(
                f"data.remote.retries_s={self.retries_s} must be a number of seconds of at least 0"
            )


DEFAULT_REMOTE = Remote(timeout_s=60, retries_s=300)
"""For what is read outside training, which has no configuration of it."""


class StoreError(Exception):
    """A store or a command that kept failing; the message says how, and does not name the file."""

    refused = False
    """Whether the failure will not pass by itself: forbidden, nobody there, no such command."""


def retry(
    attempt: Callable[[], T],
    *,
    remote: Remote,
    name: str,
    absent_tries: int = _TRIES,
    refused_tries: int | None = None,
) -> T:
    """The result of `attempt`, which is made again after growing pauses until `retries_s` have passed.

    Args:
        name: of the file, for the log.
        absent_tries: after how many tries it is believed that the file does not exist.
        refused_tries: likewise for what will hardly pass by itself; None: that may pass too.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it failed for too long.
    """
    start, tries = time.monotonic(), 0
    jitter = random.Random()  # drawing from the global one would change what training draws
    while True:
        try:
            return attempt()
        except (ImportError, NoRangesError):
            raise
        except Exception as error:  # every client has exceptions of its own
            fault, cause = fault_of(error, timeout_s=remote.timeout_s), error
        tries += 1
        waited = time.monotonic() - start
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**tries) * jitter.uniform(0.5, 1.0)
        late = waited + pause > remote.retries_s
        if fault.absent and (late or tries >= absent_tries):
            raise FileNotFoundError(fault.reason) from cause
        if late or (fault.refused and refused_tries is not None and tries >= refused_tries):
            effort = f" ({tries} tries in {waited:.0f} s)" if late else ""
            failed = StoreError(f"{fault.reason}{effort}")
            failed.refused = fault.refused
            raise failed from cause
        if tries == _TRIES:
            logger.warning("%s: %s; trying again for %g s", name, fault.reason, remote.retries_s)
        time.sleep(pause)


def contact(url: str, *, key: str, remote: Remote) -> None:
    """Read the first bytes of a file, to say at once what will not pass: a wrong name, a wrong password.

    Args:
        key: the configuration key of the URL, for the message.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_remote(url, remote=remote, refused_tries=_TRIES) as file:
            file.read(1)
    except (FileNotFoundError, StoreError) as error:
        lasting = not isinstance(error, StoreError) or error.refused
        remedy = "correct the address or the rights" if lasting else "try again when it answers"
        raise DataError(f"{key}: {url} cannot be read: {error}; {remedy}") from error


def open_remote(url: str, *, remote: Remote, refused_tries: int | None = None) -> io.RawIOBase:
    """A file at a URL, seekable where the server sends parts of files, or the output of `pipe:command`.

    Opening and every read may raise what `retry` raises, and DataError for a missing package.
    """
    again = partial(retry, remote=remote, name=url, refused_tries=refused_tries)
    if url.startswith(PIPE):
        return StreamedFile(lambda: Command(url.removeprefix(PIPE), remote.timeout_s), again)
    store = Store(url, remote.timeout_s)
    streamed = partial(StreamedFile, store.stream, again)
    size = again(store.info).size
    if size is None:
        return streamed()
    file = RangedFile(store.fetch, again, size=size)
    try:
        file.fill()  # the first block tells whether the server sends parts
    except NoRangesError:
        return streamed()
    return file


def file_info(url: str, *, remote: Remote) -> FileInfo:
    """Size and version of the file at a URL; raises like `retry`."""
    return retry(Store(url, remote.timeout_s).info, remote=remote, name=url)


def read_small(url: str, *, remote: Remote) -> bytes | None:
    """All bytes of a file that may be absent.

    Raises:
        StoreError: the store failed for too long.
    """
    attempt = Store(url, remote.timeout_s).read
    try:
        return retry(attempt, remote=remote, name=url, absent_tries=1, refused_tries=_TRIES)
    except FileNotFoundError:
        return None
    except StoreError as error:
        if error.refused:
            return None  # S3 forbids what is absent to those who may not list
        raise


def read_whole(url: str, *, remote: Remote) -> bytes:
    """All bytes of a file; raises like `retry`."""
    return retry(Store(url, remote.timeout_s).read, remote=remote, name=url)


def glob_remote(pattern: str, *, remote: Remote) -> list[str]:
    """The URLs that match a pattern with `*`, in the order of names; raises like `retry`."""
    remote = replace(remote, timeout_s=10 * remote.timeout_s)  # for many requests, a thousand names each
    attempt = Store(pattern, remote.timeout_s).glob
    try:
        return retry(attempt, remote=remote, name=pattern, refused_tries=_TRIES)
    except FileNotFoundError:
        return []


class RangedFile(io.RawIOBase):
    """A file that is fetched in blocks, each by a request of its own.

    A connection held open between blocks would be cut: minutes may pass until a stream is read on.

    Args:
        fetch: bytes from a position to another.
        again: makes a call until it succeeds.
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], again: Callable[[Callable[[], bytes]], bytes], *, size: int
    ) -> None:
        super().__init__()
        self._fetch = fetch
        self._again = again
        self._size = size
        self._position = self._start = 0
        self._block = b""
        self._length = _FIRST_BLOCK // 2

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        self.fill()
        begin = self._position - self._start
        data = self._block[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def fill(self) -> None:
        """Fetch the block at the position, if it is not there yet."""
        end = self._start + len(self._block)
        if self._start <= self._position < end or self._position >= self._size:
            return
        ahead = end <= self._position <= end + self._length
        self._length = min(2 * self._length, _LARGEST_BLOCK) if ahead else _FIRST_BLOCK
        start, stop = self._position, min(self._position + self._length, self._size)
        self._block = self._again(lambda: self._whole(start, stop))
        self._start = start

    def _whole(self, start: int, stop: int) -> bytes:
        data = self._fetch(start, stop)
        if len(data) != stop - start:
            raise OSError(f"the server sent {len(data)} of {stop - start} bytes from byte {start} on")
        return data


class StreamedFile(io.RawIOBase):
    """A file that can only be read from its beginning; after a failure it is, up to where it broke off.

    Args:
        open_stream: starts at the beginning.
        again: makes a call until it succeeds.
    """

    def __init__(
        self, open_stream: Callable[[], Stream], again: Callable[[Callable[[], bytes]], bytes]
    ) -> None:
        super().__init__()
        self._open = open_stream
        self._again = again
        self._stream: Stream | None = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._again(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = self._open()
                self._pass_over(self._stream, self._position)
            return self._stream.read(size)
        except BaseException:
            self._drop()
            raise

    def _pass_over(self, stream: Stream, size: int) -> None:
        while size > 0:
            data = stream.read(min(size, _LARGEST_BLOCK))
            if not data:
                raise OSError(f"it is shorter than before: it ends before byte {self._position}")
            size -= len(data)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
