"""Damaged and unusual images."""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fuzz import damage, world
from fuzz.case import Case
from fuzz.commands import CHECK, EVALUATE, PACK_CSV, PREVIEW, TRAIN

NUMBER = world.SHARD_SIZE + 5

Make = Callable[[Random], bytes]


def cases() -> Iterator[Case]:
    for what, (extension, make) in _IMAGES.items():
        yield Case("image", what, _in_shard(extension, make), (TRAIN, CHECK), world.shard_of(NUMBER))
    for what in ("PNG, cut off", "PNG that claims 60,000 x 60,000 pixels: a bomb"):
        do = _in_shard(*_IMAGES[what])
        yield Case("image", f"{what}, drawn on a sheet", do, (PREVIEW,), world.shard_of(NUMBER))
    yield Case("image", "of evaluation, cut off", _in_eval, (EVALUATE,), "eval/00000.tar/000005")
    yield Case("image", "cut off, in a table to be packed", _in_table(_cut_png), (PACK_CSV,), "photos.csv")
    yield Case("image", "a bomb, in a table to be packed", _in_table(_bomb), (PACK_CSV,), "photos.csv")
    yield Case(
        "image", "random bytes, in a table to be packed", _in_table(_random), (PACK_CSV,), "photos.csv"
    )
    yield Case("image", "every one of a table random bytes", _whole_table, (PACK_CSV,), "pictures/0.png")


def _in_shard(extension: str, make: Make):
    def do(folder: Path, rng: Random) -> None:
        members = world.members(NUMBER)
        del members["png"]
        world.change_sample(folder, NUMBER, {extension: make(rng), **members})
        world.drop_index(folder)

    return do


def _in_eval(folder: Path, rng: Random) -> None:
    members = world.members(5)
    world.write_shard(folder / "eval/00000.tar", 0, {5: {**members, "png": members["png"][:80]}})


def _in_table(make: Make):
    def do(folder: Path, rng: Random) -> None:
        (folder / "pictures/3.png").write_bytes(make(rng))

    return do


def _whole_table(folder: Path, rng: Random) -> None:
    for path in (folder / "pictures").iterdir():
        path.write_bytes(rng.randbytes(100))


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(rng: Random, mode: str = "RGB", size: int = 32) -> Image.Image:
    values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def _encoded(kind: str, mode: str = "RGB", **options) -> Make:
    return lambda rng: _saved(_noise(rng, mode), kind, **options)


def _part(kind: str, share: float) -> Make:
    def make(rng: Random) -> bytes:
        data = _saved(_noise(rng), kind)
        return data[: int(share * len(data))]

    return make


def _cut_png(rng: Random) -> bytes:
    return damage.png((9, 9, 9))[:90]


def _random(rng: Random) -> bytes:
    return rng.randbytes(500)


def _bomb(rng: Random) -> bytes:
    return damage.png((1, 2, 3), claimed=(60_000, 60_000))


def _text_bomb(rng: Random) -> bytes:
    text = b"Comment\0\0" + zlib.compress(bytes(32 << 20), 9)
    return damage.png((1, 2, 3), chunks={b"zTXt": text})


def _profile_bomb(rng: Random) -> bytes:
    return damage.png((1, 2, 3), chunks={b"iCCP": b"icc\0\0" + zlib.compress(bytes(32 << 20), 9)})


def _frames(kind: str) -> Make:
    def make(rng: Random) -> bytes:
        first, *rest = (_noise(rng) for _ in range(4))
        return _saved(first, kind, save_all=True, append_images=rest, duration=100)

    return make


def _grey16(rng: Random) -> bytes:
    values = np.linspace(0, 65_535, 32 * 32).astype(np.uint16).reshape(32, 32)
    return _saved(Image.fromarray(values), "PNG")


def _float_tiff(value: float) -> Make:
    return lambda rng: _saved(Image.fromarray(np.full((16, 16), value, np.float32)), "TIFF")


def _exif(data: bytes) -> Make:
    return lambda rng: _saved(_noise(rng), "JPEG", exif=b"Exif\0\0" + data)


def _orientation(value: int) -> Make:
    def make(rng: Random) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = value
        return _saved(_noise(rng), "JPEG", exif=exif)

    return make


def _palette_alpha(rng: Random) -> bytes:
    return _saved(_noise(rng, "P"), "PNG", transparency=3)


def _thin(rng: Random) -> bytes:
    return damage.png((5, 6, 7), size=(20_000, 1))


_IMAGES: dict[str, tuple[str, Make]] = {
    "PNG, cut off": ("png", _cut_png),
    "PNG, its header alone": ("png", lambda rng: damage.png((1, 1, 1))[:33]),
    "PNG, a wrong checksum": ("png", lambda rng: damage.png((1, 1, 1)).replace(b"IDAT", b"IDAU")),
    "PNG of 0 x 0 pixels": ("png", lambda rng: damage.png((1, 1, 1), claimed=(0, 0))),
    "PNG that claims 2^31 - 1 pixels a side": (
        "png",
        lambda rng: damage.png((1, 1, 1), claimed=(2**31 - 1,) * 2),
    ),
    "PNG that claims 60,000 x 60,000 pixels: a bomb": ("png", _bomb),
    "PNG with 9,000 x 9,000 pixels claimed and 64 there": (
        "png",
        lambda rng: damage.png((1, 1, 1), claimed=(9_000, 9_000)),
    ),
    "PNG with 32 MiB of compressed text": ("png", _text_bomb),
    "PNG with 32 MiB of colour profile": ("png", _profile_bomb),
    "PNG of 20,000 x 1 pixels": ("png", _thin),
    "PNG of one pixel": ("png", lambda rng: damage.png((5, 5, 5), size=(1, 1))),
    "PNG of 16 bits a pixel": ("png", _grey16),
    "PNG with a palette and a transparent colour": ("png", _palette_alpha),
    "PNG of black and white alone": ("png", _encoded("PNG", "1")),
    "JPEG, cut off in its middle": ("jpg", _part("JPEG", 0.5)),
    "JPEG, cut off in its header": ("jpg", _part("JPEG", 0.1)),
    "JPEG, in CMYK": ("jpg", _encoded("JPEG", "CMYK")),
    "JPEG in the name of a PNG": ("png", _encoded("JPEG")),
    "JPEG with random EXIF data": ("jpg", _exif(bytes(range(256)) * 8)),
    "JPEG with an orientation of 99": ("jpg", _orientation(99)),
    "WebP, cut off": ("webp", _part("WEBP", 0.6)),
    "WebP, animated": ("webp", _frames("WEBP")),
    "GIF, animated, in the name of a JPEG": ("jpg", _frames("GIF")),
    "TIFF of NaN, in the name of a JPEG": ("jpg", _float_tiff(float("nan"))),
    "TIFF of infinity, in the name of a PNG": ("png", _float_tiff(float("inf"))),
    "EPS, which Pillow would hand to another program": (
        "png",
        lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(it_ran) (w) file closefile\n%%EOF\n",
    ),
    "SVG": ("png", lambda rng: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "a page of html": ("jpg", lambda rng: b"<html>404 Not Found</html>"),
    "random bytes": ("jpg", _random),
    "random bytes behind a JPEG's first ones": ("jpg", lambda rng: b"\xff\xd8\xff\xe0" + rng.randbytes(900)),
    "empty": ("png", lambda rng: b""),
    "zeros": ("png", lambda rng: bytes(4096)),
}
