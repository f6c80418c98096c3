"""Damaged tars."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from fuzz import damage, world
from fuzz.case import Case
from fuzz.commands import CHECK, EVALUATE, INDEX, PREVIEW, TRAIN

SHARD = "shards/00001.tar"
FIRST = world.SHARD_SIZE
ALL = (TRAIN, CHECK, INDEX, PREVIEW)

Change = Callable[[bytes, Random], bytes]


def cases() -> Iterator[Case]:
    for what, change in _CHANGES.items():
        yield _case(what, change, ALL)
    for what, change in _AFTERWARDS.items():
        yield _case(f"{what}, after it was indexed", change, (TRAIN, CHECK, PREVIEW), indexed=True)
    yield Case("tar", "deleted from the middle of a pattern", _delete, (TRAIN, CHECK), "shards/00001.tar")
    yield Case("tar", "a folder with its name", _folder, ALL, "shards/00001.tar")
    yield Case("tar", "all of them cut off within the first sample", _cut_all, ALL, "shards/0000")
    yield Case("tar", "of evaluation, cut off", _cut_eval, (EVALUATE,), "eval/00000.tar")
    yield Case("tar", "samples of the same keys as another shard", _same_keys, (TRAIN, CHECK), SHARD)


def _case(what: str, change: Change, commands: tuple, *, indexed: bool = False) -> Case:
    def do(folder: Path, rng: Random) -> None:
        if not indexed:
            world.drop_index(folder)
        damage.rewrite(folder / SHARD, change, rng)

    return Case("tar", what, do, commands, SHARD)


def _delete(folder: Path, rng: Random) -> None:
    (folder / SHARD).unlink()
    # A pattern of names, not of what is there.
    damage.replace(folder / "recipes/experiment/base.yaml", "shards/*.tar", "shards/{00000..00003}.tar")


def _folder(folder: Path, rng: Random) -> None:
    world.drop_index(folder)
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()


def _cut_all(folder: Path, rng: Random) -> None:
    world.drop_index(folder)
    for path in (folder / "shards").glob("*.tar"):
        path.write_bytes(path.read_bytes()[: rng.randrange(100, 600)])


def _cut_eval(folder: Path, rng: Random) -> None:
    damage.rewrite(folder / "eval/00000.tar", damage.cut, rng)


def _same_keys(folder: Path, rng: Random) -> None:
    (folder / SHARD).write_bytes((folder / "shards/00000.tar").read_bytes())


def _sample(rng: Random) -> str:
    """A sample in the middle of the shard."""
    return world.key_of(FIRST + rng.randrange(4, 12))


def _cut_in_header(tar: bytes, rng: Random) -> bytes:
    return tar[: damage.member_at(tar, f"{_sample(rng)}.png") + rng.randrange(10, 500)]


def _cut_in_member(tar: bytes, rng: Random) -> bytes:
    return tar[: damage.member_at(tar, f"{_sample(rng)}.txt") + damage.BLOCK + 3]


def _no_end(tar: bytes, rng: Random) -> bytes:
    return tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % damage.BLOCK)


def _garbage_in_header(tar: bytes, rng: Random) -> bytes:
    start = damage.member_at(tar, f"{_sample(rng)}.png")
    return tar[:start] + rng.randbytes(damage.BLOCK) + tar[start + damage.BLOCK :]


def _zero_header(tar: bytes, rng: Random) -> bytes:
    start = damage.member_at(tar, f"{_sample(rng)}.png")
    return tar[:start] + bytes(damage.BLOCK) + tar[start + damage.BLOCK :]


def _wrong_checksum(tar: bytes, rng: Random) -> bytes:
    return damage.with_header(tar, f"{_sample(rng)}.json", kind=b"5", right_checksum=False)


def _sized(size: bytes) -> Change:
    return lambda tar, rng: damage.with_header(tar, f"{_sample(rng)}.png", size=size)


def _kind(kind: bytes, extension: str = "txt") -> Change:
    return lambda tar, rng: damage.with_header(tar, f"{_sample(rng)}.{extension}", kind=kind)


def _renamed(form: str) -> Change:
    def change(tar: bytes, rng: Random) -> bytes:
        for number in range(FIRST, FIRST + world.SHARD_SIZE):
            for extension in ("png", "txt", "json", "cls"):
                key = world.key_of(number)
                tar = damage.with_header(
                    tar, f"{key}.{extension}", rename=form.format(key=key, extension=extension).encode()
                )
        return tar

    return change


def _bytes_name(tar: bytes, rng: Random) -> bytes:
    key = _sample(rng)
    for extension in ("png", "txt", "json", "cls"):
        name = key.encode()[:-1] + b"\xff\x1b[2J." + extension.encode()
        tar = damage.with_header(tar, f"{key}.{extension}", rename=name)
    return tar


def _double_member(tar: bytes, rng: Random) -> bytes:
    """A sample with two texts: the second member takes the name of another."""
    key = _sample(rng)
    return damage.with_header(tar, f"{key}.cls", rename=f"{key}.txt".encode())


def _endless_names(tar: bytes, rng: Random) -> bytes:
    """Long-name headers without a file behind them."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    block = header.tobuf(tarfile.GNU_FORMAT) + b"a" * 511 + b"\0"
    return block * 2000 + tar


def _huge_long_name(tar: bytes, rng: Random) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    return header.tobuf(tarfile.GNU_FORMAT) + tar


def _bad_pax(records: bytes) -> Change:
    def change(tar: bytes, rng: Random) -> bytes:
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(records)
        start = damage.member_at(tar, f"{_sample(rng)}.png")
        block = header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % damage.BLOCK)
        return tar[:start] + block + tar[start:]

    return change


def _sparse(tar: bytes, rng: Random) -> bytes:
    return damage.with_header(tar, f"{_sample(rng)}.png", kind=b"S", size=b"77777777777")


def _gzip_cut(tar: bytes, rng: Random) -> bytes:
    return damage.cut(_gzipped(tar), rng)


def _gzip_flipped(tar: bytes, rng: Random) -> bytes:
    data = bytearray(_gzipped(tar))
    # In the last quarter: the samples before it are whole.
    data[rng.randrange(3 * len(data) // 4, len(data) - 20)] ^= 0x55
    return bytes(data)


def _gzipped(tar: bytes) -> bytes:
    """Stored, not compressed: the same bytes under every version of zlib."""
    return gzip.compress(tar, compresslevel=0, mtime=0)


def _gzip_bomb(tar: bytes, rng: Random) -> bytes:
    """A member of 2 GiB of zeros in 2 MB, before the samples."""
    header = tarfile.TarInfo("bomb.png")
    header.size = 2 << 30
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1 << 16))
    return out.getvalue()


def _html(tar: bytes, rng: Random) -> bytes:
    return b"<html><body>404 Not Found</body></html>\n" * 40


def _twice(tar: bytes, rng: Random) -> bytes:
    return tar + tar


_CHANGES: dict[str, Change] = {
    "cut off within a header": _cut_in_header,
    "cut off within a member": _cut_in_member,
    "without the empty blocks at its end": _no_end,
    "empty": damage.empty,
    "all zeros": damage.zeros,
    "random bytes": damage.garbage,
    "a page of html in its place": _html,
    "eight wrong bits": damage.flipped,
    "random bytes in the place of a header": _garbage_in_header,
    "zeros in the place of a header": _zero_header,
    "a header with a wrong checksum": _wrong_checksum,
    "a member that claims 8 GiB": _sized(b"77777777777"),
    "a member that claims 2^80 bytes": _sized(b"\x80\0" + b"\xff" * 10),
    "a member of a negative size": _sized(b"\xff" * 12),
    "a member whose size is no number": _sized(b"twelve"),
    "a member that is a symbolic link": _kind(b"2"),
    "a member that is a hard link": _kind(b"1"),
    "a member that is a device": _kind(b"3"),
    "a member that is a folder": _kind(b"5"),
    "a member of an unknown type": _kind(b"Z", "png"),
    "a sparse member that claims 8 GiB": _sparse,
    "names that lead out of the folder (../../)": _renamed("../../{key}.{extension}"),
    "absolute names (/etc/)": _renamed("/etc/{key}.{extension}"),
    "all samples of one name": _renamed("same.{extension}"),
    "hidden names (.000016.png)": _renamed(".{key}.{extension}"),
    "names that are no UTF-8, with terminal codes": _bytes_name,
    "a sample with two members of one name": _double_member,
    "2,000 long names and no file behind them": _endless_names,
    "a long name that claims 8 GiB": _huge_long_name,
    "a pax header of length 0": _bad_pax(b"0 path=x\n"),
    "a pax header without a number": _bad_pax(b"nonsense without any end"),
    "gzipped, cut off": _gzip_cut,
    "gzipped, with a wrong byte": _gzip_flipped,
    "gzipped, a bomb": _gzip_bomb,
    "two tars one after the other": _twice,
}

_AFTERWARDS: dict[str, Change] = {
    "cut off within a member": _cut_in_member,
    "empty": damage.empty,
    "random bytes": damage.garbage,
    "eight wrong bits": damage.flipped,
    "a header with a wrong checksum": _wrong_checksum,
    "a page of html in its place": _html,
}
