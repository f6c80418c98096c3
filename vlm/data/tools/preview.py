"""A contact sheet: images of shards with their captions."""

import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from vlm.data.samples import BrokenSampleError, decode_record, record_captions, sample_image
from vlm.data.shards import ShardCursor, ShardSet, open_shards
from vlm.data.sources import as_strings
from vlm.data.tar import RawSample
from vlm.data.tools.fonts import Font, find_font
from vlm.errors import ConfigError
from vlm.files import replacing, writing

logger = logging.getLogger(__name__)

_FONT_SIZE = 14
_LINE = 18
_MARGIN = 8
_MOST_PIXELS = 200_000_000
_MAX_LINES = 4
"""Of each caption."""
_INK, _GREY, _RED, _PAPER = (20, 20, 20), (130, 130, 130), (180, 0, 0), (255, 255, 255)
_CHECK = ((228, 228, 228), (248, 248, 248))
_CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")

Color = tuple[int, int, int]


class Line(NamedTuple):
    """A line of text under an image."""

    text: str
    color: Color


class Cell(NamedTuple):
    """An image, scaled, and the lines under it."""

    image: Image.Image | None
    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Draws some samples of shards on a sheet.

    Args:
        shards: patterns, as in `data.train.shards`.
        captions: fields, as in `data.train.captions`; each is drawn.
        out: the PNG.
        num_samples: images on the sheet, drawn at random by `seed` and shown in their stored order.
        columns: images in a row.
        image_size: longest side of an image on the sheet, in pixels.
        font: a font file; None searches one with Chinese characters.

    Raises:
        ConfigError: a number is out of range.
    """

    shards: str | Sequence[str]
    captions: str | Sequence[str]
    out: str
    num_samples: int
    columns: int
    image_size: int
    seed: int
    font: str | None

    def __post_init__(self) -> None:
        for name in ("num_samples", "columns", "image_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def run(self) -> int:
        """Write the sheet. Returns the number of samples on it.

        Raises:
            ConfigError: the sheet would be too large.
            DataError: there are no such shards, or one cannot be read.
        """
        shards = open_shards(self.shards, key="shards")
        count = min(self.num_samples, shards.num_samples)
        rows = sorted(random.Random(self.seed).sample(range(shards.num_samples), count))
        if count * self.image_size**2 > _MOST_PIXELS:
            raise ConfigError(
                f"{count} images of image_size={self.image_size} make a sheet of more than {_MOST_PIXELS:,} "
                "pixels; lower num_samples or image_size"
            )
        font, has_chinese = find_font(_FONT_SIZE, path=self.font)
        cells = [self._cell(sample, font) for sample in _read(shards, rows)]
        if not has_chinese and any(_CJK.search(line.text) for cell in cells for line in cell.lines):
            logger.warning(
                "no font with Chinese characters was found, they are drawn as boxes; install one (Debian "
                "and Ubuntu: apt install fonts-noto-cjk, Fedora: dnf install google-noto-sans-cjk-fonts) or "
                "name a file by font="
            )
        sheet = _sheet(cells, columns=min(self.columns, max(1, count)), side=self.image_size, font=font)
        out = Path(self.out)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as draft:
                sheet.save(draft, "PNG")
        return count

    def _cell(self, sample: RawSample, font: Font) -> Cell:
        lines = [Line(sample.key, _GREY)]
        try:
            captions = record_captions(decode_record(sample), as_strings(self.captions))
        except BrokenSampleError as error:
            captions, lines = [], [*lines, Line(str(error), _RED)]
        else:
            if not captions:
                lines.append(Line(f"no caption in {', '.join(as_strings(self.captions))}", _RED))
        lines += [Line(caption, _INK) for group in captions for caption in group[:1]]
        try:
            image = _thumbnail(sample_image(sample), self.image_size)
        except Exception as error:  # damaged files make Pillow raise almost anything
            image, lines = None, [*lines, Line(str(error) or type(error).__name__, _RED)]
        wrapped = (
            Line(text, color) for text, color in lines for text in _wrap(text, font, width=self.image_size)
        )
        return Cell(image, list(wrapped))


def _read(shards: ShardSet, rows: Sequence[int]) -> Iterator[RawSample]:
    cursor = ShardCursor(shards, None)
    for row in rows:
        yield cursor.read(*shards.locate(row))
    cursor.close()


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The whole image within a square; transparent parts show a check."""
    image.draft(None, (side, side))
    image.load()
    layer = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    scale = side / max(layer.size)
    if scale < 1 or scale >= 2:
        factor = scale if scale < 1 else int(scale)  # small images grow by whole pixels
        size = (max(1, round(layer.width * factor)), max(1, round(layer.height * factor)))
        layer = layer.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    if layer.mode == "RGB":
        return layer
    return Image.alpha_composite(_check(layer.size), layer).convert("RGB")


def _check(size: tuple[int, int]) -> Image.Image:
    paper = Image.new("RGBA", size, (*_CHECK[0], 255))
    draw = ImageDraw.Draw(paper)
    for y in range(0, size[1], 8):
        for x in range(y % 16, size[0], 16):
            draw.rectangle((x, y, x + 7, y + 7), fill=_CHECK[1])
    return paper


def _wrap(text: str, font: Font, *, width: int) -> Iterator[str]:
    """Lines of at most `width` pixels: cut at spaces, between Chinese characters, or where it must be."""
    line = ""
    count = 0
    for piece in _pieces(" ".join(text.split()), font, width):
        if line and font.getlength(line + piece.rstrip()) > width:
            count += 1
            if count == _MAX_LINES:
                yield f"{line.rstrip()}…"
                return
            yield line.rstrip()
            line = ""
        line += piece if line else piece.lstrip()
    if line:
        yield line.rstrip()


def _pieces(text: str, font: Font, width: int) -> Iterator[str]:
    for piece in re.findall(rf"{_CJK.pattern}|(?:(?!{_CJK.pattern})\S)+\s*|\s+", text):
        if font.getlength(piece.rstrip()) <= width:
            yield piece
        else:
            yield from piece


def _sheet(cells: Sequence[Cell], *, columns: int, side: int, font: Font) -> Image.Image:
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [side + _LINE * max(len(cell.lines) for cell in row) + 2 * _MARGIN for row in rows]
    sheet = Image.new("RGB", (columns * (side + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _MARGIN + column * (side + _MARGIN)
            _draw_cell(sheet, draw, cell, left=left, top=top, side=side, font=font)
        top += height
    return sheet


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, *, left: int, top: int, side: int, font: Font
) -> None:
    if cell.image is None:
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline=_RED)
        draw.line((left, top, left + side - 1, top + side - 1), fill=_RED)
    else:
        x, y = left + (side - cell.image.width) // 2, top + (side - cell.image.height) // 2
        sheet.paste(cell.image, (x, y))
    for number, line in enumerate(cell.lines):
        draw.text((left, top + side + 4 + number * _LINE), line.text, fill=line.color, font=font)
