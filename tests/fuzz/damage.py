"""Ways to damage the bytes of a file."""

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

BLOCK = 512

Bytes = Callable[[bytes, Random], bytes]


def cut(data: bytes, rng: Random) -> bytes:
    """Without its end."""
    return data[: rng.randrange(len(data) // 4, 3 * len(data) // 4)]


def flipped(data: bytes, rng: Random) -> bytes:
    """With some wrong bits."""
    changed = bytearray(data)
    for _ in range(8):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def garbage(data: bytes, rng: Random) -> bytes:
    """Other bytes, as many."""
    return rng.randbytes(len(data))


def zeros(data: bytes, rng: Random) -> bytes:
    """As a file system leaves it after a power cut: the size is right, nothing was written."""
    return bytes(len(data))


def empty(data: bytes, rng: Random) -> bytes:
    """Nothing."""
    return b""


def rewrite(path: Path, change: Bytes, rng: Random) -> None:
    """Damage a file in its place."""
    path.write_bytes(change(path.read_bytes(), rng))


def replace(path: Path, old: str, new: str) -> None:
    """Put another text in the place of one that a file has."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def member_at(tar: bytes, name: str) -> int:
    """Where the header of a member begins."""
    return tar.index(name.encode())


def with_header(
    tar: bytes,
    name: str,
    *,
    size: bytes | None = None,
    kind: bytes | None = None,
    rename: bytes | None = None,
    right_checksum: bool = True,
) -> bytes:
    """A tar with one header changed."""
    start = member_at(tar, name)
    header = bytearray(tar[start : start + BLOCK])
    if rename is not None:
        header[0:100] = rename.ljust(100, b"\0")
    if size is not None:
        header[124:136] = size.ljust(12, b"\0")
    if kind is not None:
        header[156:157] = kind
    if right_checksum:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return tar[:start] + bytes(header) + tar[start + BLOCK :]


def png(
    color: tuple[int, int, int],
    *,
    size: tuple[int, int] = (8, 8),
    claimed: tuple[int, int] | None = None,
    chunks: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """An uncompressed PNG, the same bytes under every version of zlib and Pillow.

    Args:
        claimed: the size that the header claims instead of the one that the pixels have.
        chunks: further ones before the pixels.
    """
    rows = (b"\0" + bytes(color) * size[0]) * size[1]
    header = struct.pack(">IIBBBBB", *(claimed or size), 8, 2, 0, 0, 0)
    parts = {b"IHDR": header, **(chunks or {}), b"IDAT": zlib.compress(rows, 0), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts.items())


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
