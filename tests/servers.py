"""Servers on loopback: files by http, with ranges or without, and a proxy that fails a share of requests."""

import contextlib
import http.client
import http.server
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any


class FileHandler(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; a part of one where it is asked for."""

    protocol_version = "HTTP/1.1"
    ranges = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        if not (self.ranges and wanted and os.path.isfile(path)):
            super().do_GET()
            return
        data = Path(path).read_bytes()
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1) + 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])


class WholeFileHandler(FileHandler):
    """The files of a folder, each as a whole or not at all; it does not say so."""

    ranges = False


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a running server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def serving_files(folder: Path, *, ranges: bool = True) -> Iterator[str]:
    """The address of a server of a folder."""
    handler = FileHandler if ranges else WholeFileHandler
    with serving(partial(handler, directory=str(folder))) as address:
        yield address


class Weather:
    """What a proxy does to requests, and what it has done.

    Args:
        share: of the requests that fail, each in a way drawn from `ways`.
        ways: a status to answer, "drop" to cut the body in its middle, "stall" to send nothing.
    """

    def __init__(self, share: float = 0.1, ways: tuple[Any, ...] = ("drop", "stall", 500, 403)) -> None:
        self.share = share
        self.ways = ways
        self.done = Counter[Any]()
        self.bytes_sent = 0
        self.ended = threading.Event()
        self._random = random.Random(1)
        self._lock = threading.Lock()

    def draw(self) -> Any:
        with self._lock:
            bad = self._random.random() < self.share
            way = self._random.choice(self.ways) if bad else "pass"
            self.done[way] += 1
            return way

    @property
    def failed(self) -> int:
        """Requests that did not pass."""
        return self.done.total() - self.done["pass"]


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    """Hands requests to a server behind it, in the weather that is."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, behind: str, weather: Weather) -> None:
        self.behind = behind
        self.weather = weather
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_any(self) -> None:
        way = self.weather.draw()
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if way == "stall":
            self.weather.ended.wait()
            self.close_connection = True
            return
        if isinstance(way, int):
            self.send_response(way)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.behind.removeprefix("http://"))
        connection.request(self.command, self.path, sent, dict(self.headers))
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if way == "drop":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.weather.bytes_sent += len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = handle_any  # noqa: N815


@contextlib.contextmanager
def proxy(behind: str, weather: Weather) -> Iterator[str]:
    """The address of a proxy before a server."""
    with serving(partial(ProxyHandler, behind=behind, weather=weather)) as address:
        try:
            yield address
        finally:
            weather.ended.set()
