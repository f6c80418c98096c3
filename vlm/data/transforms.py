"""From an image to the square of bytes that a tower takes."""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from torch import Tensor

from vlm import schema
from vlm.data.images import Box, resample_box, upright_size
from vlm.errors import ConfigError

_RESIZE_MODES = ("shortest", "longest", "squash")
_LONGEST = 8
"""Times its short side, beyond which an image is not scaled whole to be cut."""
_INTERPOLATIONS = tuple(mode.name.lower() for mode in Image.Resampling)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What is done to an image before a trained tower sees it; plain data that is stored with the model.

    Args:
        image_size: side of the result in pixels.
        background: red, green, blue under transparent pixels and beside what `longest` does not fill.
        resize_mode: `shortest`: the short side fills the square and the centre of the long one is kept;
            `longest`: the whole image on the background; `squash`: both sides scaled to the square.
        interpolation: `bicubic`, `bilinear`, `lanczos`, `box`, `hamming` or `nearest`.
    """

    image_size: int
    background: Sequence[int]
    resize_mode: str
    interpolation: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", tuple(self.background))
        if not _is_whole(self.image_size) or self.image_size < 1:
            raise ConfigError(
                f"data.preprocess.image_size={self.image_size!r} must be a whole number of at least 1"
            )
        if len(self.background) != 3 or not all(_is_whole(v) and 0 <= v <= 255 for v in self.background):
            raise ConfigError(
                f"data.preprocess.background={list(self.background)} must be three numbers from 0 to 255"
            )
        _check_choice("resize_mode", self.resize_mode, _RESIZE_MODES)
        _check_choice("interpolation", self.interpolation, _INTERPOLATIONS)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, key: str = "preprocess") -> "Preprocess":
        """Build from plain data that has exactly these fields."""
        return schema.from_mapping(cls, values, key=key)

    def to_mapping(self) -> dict[str, Any]:
        """The fields as data that json can hold."""
        return dataclasses.asdict(self) | {"background": list(self.background)}

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 {self.image_size} {self.image_size}"]:
        """Scale an image to the square.

        Raises:
            UnreadableImageError: the pixels cannot be decoded.
        """
        width, height = map(float, upright_size(image))
        side = self.image_size
        if self.resize_mode == "longest":
            scale = side / max(width, height)
            inner = (max(1, round(width * scale)), max(1, round(height * scale)))
            canvas = Image.new("RGB", (side, side), self._colour)
            part = self._resample(image, _box(0.0, 0.0, width, height), size=inner)
            canvas.paste(part, ((side - inner[0]) // 2, (side - inner[1]) // 2))
            return _to_tensor(canvas)
        if self.resize_mode == "squash":
            return _to_tensor(self.cut(image, _box(0.0, 0.0, width, height)))
        return _to_tensor(self._middle(image, width, height))

    def _middle(self, image: Image.Image, width: float, height: float) -> Image.Image:
        """The square in the middle, with the very pixels of torchvision's Resize and CenterCrop.

        Those scale the whole image to whole pixels, and cut at a whole pixel.
        """
        side, short = self.image_size, min(width, height)
        scaled = int(side * width / short), int(side * height / short)
        left, top = (round((length - side) / 2) for length in scaled)
        if max(scaled) <= _LONGEST * side:
            whole = self._resample(image, _box(0.0, 0.0, width, height), size=scaled)
            return whole.crop((left, top, left + side, top + side))
        # As near as rounding allows: all of a strip of one pixel by millions would not fit in memory.
        across, down = width / scaled[0], height / scaled[1]
        return self.cut(image, _box(left * across, top * down, side * across, side * down))

    def cut(self, image: Image.Image, box: Box) -> Image.Image:
        """Scale a part of an image (left, top, right, bottom) to the square, in RGB."""
        return self._resample(image, box, size=(self.image_size, self.image_size))

    def _resample(self, image: Image.Image, box: Box, *, size: tuple[int, int]) -> Image.Image:
        interpolation = Image.Resampling[self.interpolation.upper()]
        return resample_box(image, box, size=size, background=self._colour, interpolation=interpolation)

    @property
    def _colour(self) -> tuple[int, int, int]:
        red, green, blue = self.background
        return red, green, blue


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random crop, colours and mirroring in training, in place of `Preprocess`'s fixed cut.

    Args:
        crop_scale: smallest and largest share of the image's area that is kept.
        crop_ratio: smallest and largest width / height of the part that is kept.
        color_jitter: brightness, contrast and saturation are each scaled by a factor in 1 ± this; 0 is off.
        flip_probability: how often left and right change places; 0 is off. Captions that speak of left and
            right, and pictures of writing, become wrong by it.
    """

    crop_scale: Sequence[float]
    crop_ratio: Sequence[float]
    color_jitter: float
    flip_probability: float

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_range("crop_scale", self.crop_scale, most=1.0)
        _check_range("crop_ratio", self.crop_ratio, most=math.inf)
        for name, value in (("color_jitter", self.color_jitter), ("flip_probability", self.flip_probability)):
            if not 0 <= value <= 1:
                raise ConfigError(f"data.augment.{name}={value} must be from 0 (off) to 1")

    def __call__(
        self, image: Image.Image, preprocess: Preprocess, *, rng: random.Random
    ) -> UInt8[Tensor, "3 h w"]:
        """A random variant of an image in the size, background and interpolation of `preprocess`.

        Raises:
            UnreadableImageError: the pixels cannot be decoded.
        """
        cut = preprocess.cut(image, self._random_box(upright_size(image), rng))
        if self.color_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                cut = enhance(cut).enhance(_uniform(rng, 1 - self.color_jitter, 1 + self.color_jitter))
        if rng.random() < self.flip_probability:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_tensor(cut)

    def _random_box(self, size: tuple[int, int], rng: random.Random) -> Box:
        width, height = map(float, size)
        low, high = self.crop_ratio
        for _ in range(10):  # a drawn shape may not fit into the image
            area = width * height * _uniform(rng, *self.crop_scale)
            ratio = math.exp(_uniform(rng, math.log(low), math.log(high)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                return _box(rng.random() * (width - w), rng.random() * (height - h), w, h)
        ratio = min(max(width / height, low), high)
        w, h = min(width, height * ratio), min(height, width / ratio)
        return _box((width - w) / 2, (height - h) / 2, w, h)


def _box(left: float, top: float, width: float, height: float) -> Box:
    return left, top, left + width, top + height


def _uniform(rng: random.Random, low: float, high: float) -> float:
    # random() alone is promised to give the same numbers in every Python release
    return low + (high - low) * rng.random()


def _is_whole(value: object) -> bool:
    """The configuration has types; a json beside weights may hold anything."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"data.preprocess.{name}={value!r} is unknown; use {', '.join(choices)}")


def _check_range(name: str, value: Sequence[float], *, most: float) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise ConfigError(f"data.augment.{name}={list(value)} must be [smallest, largest], above 0{limit}")


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The bytes of an RGB image, channels first."""
    # band by band: transposing interleaved pixels takes nearly twice as long
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))
