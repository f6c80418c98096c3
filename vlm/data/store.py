"""Single requests to a store, and commands that stand for one, each with a time limit."""

import os
import select
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vlm.errors import DataError


class FileInfo(NamedTuple):
    """What a server says of a file; None where it does not.

    `version` changes when the file does.
    """

    size: int | None
    version: str


class RefusedError(Exception):
    """A failure that will hardly pass by itself."""


class NoRangesError(Exception):
    """The server sends whole files only."""


class Fault(NamedTuple):
    """Why a request failed: `absent`: no such file; `refused`: it will hardly pass by itself."""

    reason: str
    absent: bool = False
    refused: bool = False


@runtime_checkable
class Stream(Protocol):
    """Bytes from the beginning of something to its end."""

    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


class Store:
    """Single requests for the file at a URL, each with a time limit.

    Raises:
        DataError: the store needs a package that is not installed.
    """

    def __init__(self, url: str, timeout_s: int | float) -> None:
        import fsspec

        self._timeout_s = timeout_s
        self._is_http = url.startswith(("http://", "https://"))
        # a listing of before would hide that a file has changed
        options: dict[str, Any] = {"use_listings_cache": False}
        if url.startswith("s3://"):
            # tries of its own would hide behind the time limit what the server says
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
        try:
            self._files, self._path = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise DataError(f"{url} cannot be opened: {error} (for s3: pip install -e '.[s3]')") from error
        except ValueError as error:
            raise DataError(f"{url} cannot be opened: {error}") from error
        if url.startswith("s3://"):
            self._files.retries = 1

    def info(self) -> FileInfo:
        """Size and version, as the server says."""
        found = self._call("info", self._path)
        marks = (found.get(name) for name in ("ETag", "Last-Modified", "LastModified", "mtime"))
        version = next((str(mark) for mark in marks if mark), "")
        size = found.get("size")
        return FileInfo(size, f"{size} {version}")

    def read(self) -> bytes:
        """All bytes."""
        data: bytes = self._call("cat_file", self._path)
        return data

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes start … stop − 1.

        Raises:
            NoRangesError: the server sends whole files only.
        """
        if self._is_http:
            data: bytes = self._sync(self._fetch_http, start, stop)
        else:
            data = self._call("cat_file", self._path, start=start, end=stop)
        return data

    def glob(self) -> list[str]:
        """The URLs that match, in the order of names."""
        found = self._call("glob", self._path)
        return sorted(self._files.unstrip_protocol(path) for path in found)

    def stream(self) -> Stream:
        """The body of the file, from its beginning on; of http alone."""
        reply = self._sync(self._get_http, {})
        return _Reply(reply, self._sync, self._files.loop)

    async def _fetch_http(self, start: int, stop: int) -> bytes:
        # fsspec would take a whole file for the part that was asked for
        async with await self._get_http({"Range": f"bytes={start}-{stop - 1}"}) as reply:
            if reply.status != 206:
                reply.close()
                raise NoRangesError
            data: bytes = await reply.read()
            return data

    async def _get_http(self, headers: dict[str, str]) -> Any:
        import aiohttp

        session = await self._files.set_session()
        reply = await session.get(
            self._files.encode_url(self._path),
            headers={"Accept-Encoding": "identity", **headers},
            timeout=aiohttp.ClientTimeout(total=None),
        )
        if reply.status >= 400:
            reply.close()
            reply.raise_for_status()
        return reply

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        if self._files.async_impl:
            return self._sync(getattr(self._files, f"_{method}"), *args, **options)
        return getattr(self._files, method)(*args, **options)

    def _sync(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._files.loop, function, *args, timeout=self._timeout_s, **options)


class _Reply:
    """The body of an http reply."""

    def __init__(self, reply: Any, sync: Callable[..., Any], loop: Any) -> None:
        self._reply = reply
        self._sync = sync
        self._loop = loop

    def read(self, size: int) -> bytes:
        data: bytes = self._sync(self._reply.content.read, size)
        return data

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._reply.close)


class Command:
    """The standard output of a shell command."""

    def __init__(self, command: str, timeout_s: int | float) -> None:
        self._timeout_s = timeout_s
        # a session of its own, so that closing ends every process of a pipeline
        self._process = subprocess.Popen(
            command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        if not select.select([output], [], [], self._timeout_s)[0]:
            raise TimeoutError
        data = os.read(output, size)
        if not data and (status := self._process.wait(self._timeout_s)):
            raise RefusedError(f"the command ended with exit status {status}")
        return data

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def fault_of(error: Exception, *, timeout_s: int | float) -> Fault:
    """What an exception of any client means."""
    cause = error.__cause__
    if isinstance(cause, Exception) and type(cause).__module__.startswith("aiohttp."):
        return fault_of(cause, timeout_s=timeout_s)  # fsspec says of every http error that the file is absent
    if isinstance(error, TimeoutError | subprocess.TimeoutExpired):
        return Fault(f"no answer within {timeout_s:g} s")
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        absent = status in (404, 410)
        refused = 400 <= status < 500 and status not in (408, 425, 429)
        said = f"the server answered {status} {getattr(error, 'message', '')}".strip()
        return Fault(said, absent=absent, refused=refused)
    if isinstance(error, FileNotFoundError):
        return Fault("there is no such file", absent=True)
    if isinstance(error, PermissionError):
        return Fault(f"access is denied: {error}", refused=True)
    os_error = getattr(error, "os_error", None)  # of aiohttp's errors of connecting
    if os_error is not None:
        where = f"{getattr(error, 'host', '?')}:{getattr(error, 'port', '?')}"
        number = os_error.errno or 0  # names that cannot be resolved have negative ones
        reason = os.strerror(number) if number > 0 else os_error.strerror or os_error
        return Fault(f"no connection to {where}: {reason}", refused=True)
    name = type(error).__name__
    if name in _BROKEN_OFF:
        return Fault("the connection broke off")
    refused = isinstance(error, RefusedError) or name in _HOPELESS
    strerror = error.strerror if isinstance(error, OSError) else None  # leaves out a number that says little
    return Fault(strerror or str(error) or name, refused=refused)


# botocore's and aiohttp's, which are not imported for the sake of their names
_HOPELESS = {"NoCredentialsError", "EndpointConnectionError", "InvalidURL", "InvalidUrlClientError"}
_BROKEN_OFF = {"ClientPayloadError", "ContentLengthError", "TransferEncodingError", "ServerDisconnectedError"}
