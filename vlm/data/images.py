"""From the bytes of an image file to upright pixels in RGB."""

import base64
import io
import math
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vlm.broken import Cause

# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as this many pixels, in each direction,
# still stand behind each pixel of the result, so that the resampling filter decides its quality.
_OVERSAMPLING = 2.0

# What is found behind the usual extensions. Asking every plugin takes a quarter of a millisecond for a WebP,
# and some hand the bytes to other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

Box = tuple[float, float, float, float]

# EXIF orientation: how the stored pixels are turned, or mirrored, to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


class UnreadableImageError(ValueError):
    """Bytes that are no image, or are cut short."""

    cause = Cause.UNREADABLE_IMAGE


class OversizedImageError(UnreadableImageError):
    """An image of more pixels than Pillow's limit, `Image.MAX_IMAGE_PIXELS`."""

    cause = Cause.OVERSIZED_IMAGE


def open_image(data: bytes) -> Image.Image:
    """Read the header of an image file; pixels are decoded when they are asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise OversizedImageError(str(error)) from error
        except UnidentifiedImageError as error:  # its own words name an address in memory
            raise UnreadableImageError(f"it is no {', '.join(_FORMATS)}") from error
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise UnreadableImageError(str(error) or type(error).__name__) from error


def data_uri(picture: Image.Image) -> str:
    """A picture as a WebP within a page of HTML."""
    file = io.BytesIO()
    picture.save(file, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail(image: Image.Image, *, side: int) -> Image.Image:
    """The whole image as it is looked at, on white where it is transparent, no larger than `side` either way.

    Raises:
        UnreadableImageError: the pixels cannot be decoded.
    """
    width, height = upright_size(image)
    scale = min(1.0, side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    whole = (0.0, 0.0, float(width), float(height))
    white = (255, 255, 255)
    return resample_box(image, whole, size=size, background=white, interpolation=Image.Resampling.BICUBIC)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the image as it is looked at, with the orientation of its EXIF data."""
    width, height = image.size
    return (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)


def resample_box(
    image: Image.Image,
    box: Box,
    *,
    size: tuple[int, int],
    background: tuple[int, int, int],
    interpolation: Image.Resampling,
) -> Image.Image:
    """The part of an image in `box`, scaled to `size` in one operation, upright and in RGB.

    Args:
        box: left, top, right, bottom in pixels of the upright image, fractions allowed.
        size: width and height of the result.
        background: what shows through where the image is transparent.

    Raises:
        UnreadableImageError: the pixels cannot be decoded.
    """
    width, height = image.size
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        box, size = _stored(box, size, image.size, orientation)
    scale = _OVERSAMPLING * max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
    try:
        if scale < 1:
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
        rgb = _to_rgb(image, background)
    except Exception as error:
        raise UnreadableImageError(str(error)) from error
    x, y = rgb.width / width, rgb.height / height
    scaled = (box[0] * x, box[1] * y, min(box[2] * x, rgb.width), min(box[3] * y, rgb.height))
    cut = rgb.resize(size, interpolation, box=scaled)
    return cut.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else cut


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF itself; asking a PNG for what does not stand at its beginning would decode it.
    if image.format == "TIFF" or not ("exif" in image.info or "xmp" in image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged description spoils no pixels
        return 1


def _stored(
    box: Box, size: tuple[int, int], image_size: tuple[int, int], orientation: int
) -> tuple[Box, tuple[int, int]]:
    """A box of the upright image and the size to scale it to, in the image as it is stored."""
    left, top, right, bottom = box
    if orientation in _ON_ITS_SIDE:
        left, top, right, bottom = top, left, bottom, right
        size = size[1], size[0]
    width, height = image_size
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom), size


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode[0] in "IF":
        return _to_bytes(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, layer).convert("RGB")


def _to_bytes(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, or floating point, as bytes: Pillow would cut off what exceeds 255."""
    grey = np.asarray(image)
    if image.mode == "F":
        grey = grey * (255 if grey.max() <= 1 else 1)
    elif image.mode != "I" or grey.max() > 255:
        grey = grey / 257
    return Image.fromarray(np.nan_to_num(grey).clip(0, 255).round().astype(np.uint8))
