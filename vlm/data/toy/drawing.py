"""Drawing toy scenes: flat shapes with a texture on a light ground, anti-aliased."""

import math
from functools import cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from vlm.data.toy.scenes import Scene

_OVERSAMPLING = 4
_RGB = {
    "red": (214, 32, 38),
    "yellow": (240, 205, 20),
    "green": (36, 150, 60),
    "blue": (35, 80, 215),
    "purple": (128, 45, 170),
    "pink": (245, 130, 180),
    "brown": (125, 75, 35),
    "black": (25, 25, 28),
}
_DIAMETERS = {"small": (0.29, 0.33), "large": (0.43, 0.48)}
"""Least and greatest diameter, in parts of the image's edge."""


def draw_scene(scene: Scene, *, image_size: int, rng: Random) -> Image.Image:
    """An RGB image; ground, tints and exact sizes vary with `rng`."""
    edge = image_size * _OVERSAMPLING
    ground = rng.randint(205, 245)
    canvas = Image.new("RGB", (edge, edge), tuple(ground + rng.randint(-8, 8) for _ in range(3)))
    for thing, (x, y) in zip(scene.things, scene.centres, strict=True):
        diameter = round(rng.uniform(*_DIAMETERS[thing.size]) * edge)
        tint = tuple(min(255, max(0, channel + rng.randint(-14, 14))) for channel in _RGB[thing.kind.colour])
        corner = (round(x * edge) - diameter // 2, round(y * edge) - diameter // 2)
        canvas.paste(tint, corner, _stamp(thing.kind.shape, thing.kind.texture, diameter))
    return canvas.reduce(_OVERSAMPLING)


@cache
def _stamp(shape: str, texture: str, diameter: int) -> Image.Image:
    """Mask of the painted pixels of a thing, `diameter` pixels wide and high."""
    body = Image.new("L", (diameter, diameter))
    pencil = ImageDraw.Draw(body)
    if shape == "circle":
        pencil.ellipse((0, 0, diameter - 1, diameter - 1), fill=255)
    else:
        last = diameter - 1
        pencil.polygon([(round(x * last), round(y * last)) for x, y in _corners(shape)], fill=255)
    if texture == "solid":
        return body
    if texture == "hollow":
        return ImageChops.subtract(body, _eroded(body, round(diameter * 0.13)))
    inside = _eroded(body, round(diameter * 0.06))  # a rim keeps striped and dotted shapes legible
    return ImageChops.subtract(body, ImageChops.multiply(inside, _gaps(texture, diameter)))


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape within the unit square, y downwards."""
    if shape == "square":
        return [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]
    if shape == "triangle":
        return [(0.5, 0.02), (1.0, 0.92), (0.0, 0.92)]
    if shape == "cross":
        near, far = 0.3, 0.7
        return [
            (near, 0.0), (far, 0.0), (far, near), (1.0, near), (1.0, far), (far, far),
            (far, 1.0), (near, 1.0), (near, far), (0.0, far), (0.0, near), (near, near),
        ]  # fmt: skip
    if shape == "star":
        rim = [(0.52 if i % 2 == 0 else 0.26, math.pi * i / 5) for i in range(10)]
        return [(0.5 + radius * math.sin(angle), 0.54 - radius * math.cos(angle)) for radius, angle in rim]
    turns = [2 * math.pi * i / 40 for i in range(40)]  # the heart curve x = 16 sin³ t, y = 13 cos t - …
    return [(0.5 + math.sin(t) ** 3 / 2, 0.44 - _heart_height(t) / 32) for t in turns]


def _heart_height(t: float) -> float:
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)


def _eroded(mask: Image.Image, width: int) -> Image.Image:
    """The mask without its outermost `width` pixels."""
    wide = ImageOps.expand(mask, border=width).filter(ImageFilter.MinFilter(2 * width + 1))
    return ImageOps.crop(wide, border=width)


def _gaps(texture: str, diameter: int) -> Image.Image:
    """Where a striped or dotted thing lets the ground through."""
    gaps = Image.new("L", (diameter, diameter))
    pencil = ImageDraw.Draw(gaps)
    if texture == "striped":
        period = diameter * 0.36
        for i in range(6):
            x = (i + 0.2) * period
            slanted = [(x, 0), (x + period * 0.45, 0), (x + period * 0.45 - diameter, diameter)]
            pencil.polygon([*slanted, (x - diameter, diameter)], fill=255)
        return gaps
    step, radius = diameter * 0.27, diameter * 0.09
    for row in range(-2, 3):
        for column in range(-2, 3):
            x, y = diameter / 2 + column * step, diameter / 2 + row * step
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return gaps
