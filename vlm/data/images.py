"""From the bytes of an image file to pixels."""

import io
import math
import warnings

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as this many pixels, in each direction,
# still stand behind each pixel of the result, so that the resampling filter decides its quality.
_OVERSAMPLING = 2.0

# What is found behind the usual extensions. Asking every plugin takes a quarter of a millisecond for a WebP,
# and some hand the bytes to other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

Box = tuple[float, float, float, float]


class UnreadableImageError(ValueError):
    """Bytes that are no image, are cut short, or promise more pixels than Pillow's limit."""


def open_image(data: bytes) -> Image.Image:
    """Read the header of an image file; pixels are decoded when they are asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise UnreadableImageError(str(error)) from error


def resample_box(
    image: Image.Image,
    box: Box,
    *,
    size: tuple[int, int],
    background: tuple[int, int, int],
    interpolation: Image.Resampling,
) -> Image.Image:
    """The part of an image in `box`, scaled to `size` in one operation, in RGB.

    Args:
        box: left, top, right, bottom in pixels of the image, fractions allowed.
        size: width and height of the result.
        background: what shows through where the image is transparent.

    Raises:
        UnreadableImageError: the pixels cannot be decoded.
    """
    width, height = image.size
    scale = _OVERSAMPLING * max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
    try:
        if scale < 1:
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
    except Exception as error:
        raise UnreadableImageError(str(error)) from error
    rgb = _to_rgb(image, background)
    x, y = rgb.width / width, rgb.height / height
    scaled = (box[0] * x, box[1] * y, min(box[2] * x, rgb.width), min(box[3] * y, rgb.height))
    return rgb.resize(size, interpolation, box=scaled)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The bytes of an RGB image, channels first."""
    # band by band: transposing interleaved pixels takes nearly twice as long
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, layer).convert("RGB")
