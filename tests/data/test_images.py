"""Images as they are found: turned by their camera, deep, in other colours, with several frames."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from small_shards import AUGMENT, PREPROCESS

from vlm.data.images import OversizedImageError, UnreadableImageError, open_image, thumbnail, upright_size
from vlm.data.transforms import Preprocess

WHOLE = Preprocess(image_size=8, background=[255, 255, 255], resize_mode="squash", interpolation="bicubic")
SHORTEST = PREPROCESS
LONGEST = Preprocess(image_size=8, background=[9, 8, 7], resize_mode="longest", interpolation="bicubic")


def picture(width=48, height=32) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8))


def saved(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation, kind, image=None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(image or picture(), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation, kind):
    data = turned(orientation, kind)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright_size(open_image(data)) == upright.size
    reference = Image.fromarray(np.asarray(upright.convert("RGB")))
    most = 4 if kind == "JPEG" else 1  # which is decoded at half its size
    for preprocess in (WHOLE, SHORTEST, LONGEST):
        found, expected = preprocess(open_image(data)), preprocess(reference)
        assert (found.int() - expected.int()).abs().max() <= most
    found = AUGMENT(open_image(data), WHOLE, rng=random.Random(3))
    expected = AUGMENT(reference, WHOLE, rng=random.Random(3))
    assert (found.int() - expected.int()).abs().max() <= most


def test_a_large_turned_jpeg_is_still_decoded_smaller():
    data = turned(6, "JPEG", picture(1200, 800))
    image = open_image(data)
    small = WHOLE(image)
    assert image.size[0] < 300
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (small.int() - WHOLE(Image.fromarray(np.asarray(upright))).int()).abs().max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"\0" * 50])
def test_a_damaged_description_spoils_no_pixels(exif):
    data = saved(picture(), "JPEG", exif=exif)
    assert torch.equal(WHOLE(open_image(data)), WHOLE(open_image(saved(picture(), "JPEG"))))


def grey(kind, values):
    return saved(Image.fromarray(values), kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_levels_of_16_bits_are_scaled_not_cut_off(kind):
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(256, axis=0)
    found = WHOLE(open_image(grey(kind, levels)))
    expected = WHOLE(Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB"))
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((8, 8), 0.5, np.float32), 128),
        (np.full((8, 8), 200.0, np.float32), 200),
        (np.full((8, 8), np.nan, np.float32), 0),
        (np.full((8, 8), 40_000, np.int32), 156),
        (np.full((8, 8), 77, np.int32), 77),
    ],
)
def test_other_numbers_become_bytes(values, expected):
    assert WHOLE(open_image(grey("TIFF", values))).unique().tolist() == [expected]


def test_cmyk_and_other_colours_become_rgb():
    for mode in ("CMYK", "YCbCr", "L"):
        found = WHOLE(open_image(saved(picture().convert(mode), "JPEG", quality=95)))
        expected = WHOLE(picture().convert(mode).convert("RGB"))
        assert (found.int() - expected.int()).abs().max() <= 8


def test_a_palette_with_a_clear_colour_shows_the_background():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 8))
    found = WHOLE(open_image(saved(image, "PNG", transparency=0)))
    assert found[:, 4, 0].tolist() == [255, 255, 255]
    assert found[:, 4, 7].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert WHOLE(open_image(data))[:, 0, 0].tolist() == [200, 0, 0]


def bomb(kind):
    """A small file of an image of 144 million pixels."""
    return saved(Image.new("L", (12_000, 12_000)), kind)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(kind):
    data = bomb(kind) if kind != "BMP" else saved(Image.new("1", (12_000, 12_000)), "BMP")
    with pytest.raises(OversizedImageError, match="decompression bomb"):
        open_image(data)


def test_a_header_that_promises_less_than_the_data_hold_decodes_what_it_promises():
    """Compressed data of a bomb behind a small header."""
    data = bytearray(bomb("PNG"))
    small = saved(Image.new("L", (8, 8)), "PNG")
    data[16:33] = small[16:33]  # width, height, depth and their checksum
    assert WHOLE(open_image(bytes(data))).unique().tolist() == [0]


def test_png_text_that_unpacks_to_much_is_unreadable_or_ignored():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "a" * (200 << 20), zip=True)
    data = saved(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", pnginfo=info)
    assert len(data) < 1 << 20
    with pytest.raises(UnreadableImageError):
        WHOLE(open_image(data))


def test_a_thumbnail_is_upright_on_white_and_never_larger() -> None:
    glass = Image.new("RGBA", (8, 4), (200, 0, 0, 0))
    assert thumbnail(glass, side=64).getcolors() == [(32, (255, 255, 255))]
    assert thumbnail(Image.new("RGB", (100, 40)), side=50).size == (50, 20)
    assert thumbnail(Image.new("RGB", (1000, 1)), side=10).size == (10, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = open_image(saved(Image.new("RGB", (40, 20)), "JPEG", exif=exif))
    assert thumbnail(turned, side=20).size == (10, 20)
