"""Lines over the number of ranks, on logarithmic axes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 360, 62, 20, 50, 44
COLOURS = {"local_rows": "#b5541c", "tiled": "#2456a6", "grouped": "#3c8d40"}
GREY, BLACK = "#5c636b", "#1c1f23"


def draw_scale(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Memory, traffic and time of the rows of `scale_report`, a panel each, as a picture."""
    panels = {
        "memory of the loss, GiB": [(row, row["logits"] + row["gathered"]) for row in rows],
        "received, GiB a step": [(row, row["received"]) for row in rows],
        **_times(rows),
    }
    picture = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "#ffffff")
    for number, (title, points) in enumerate(panels.items()):
        _Panel(ImageDraw.Draw(picture), WIDTH * number, points).draw(title)
    picture.save(path)


def _times(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
    name = "step" if rows[0]["step"] != "" else "loss"
    return {f"{name}, s": [(row, row[name]) for row in rows]}


class _Panel:
    """One plot, from `left` on."""

    def __init__(
        self, pen: ImageDraw.ImageDraw, left: int, points: Sequence[tuple[Mapping[str, Any], float]]
    ) -> None:
        self.pen, self.left, self.points = pen, left, [(row, y) for row, y in points if y > 0]
        self.font = ImageFont.load_default(13)
        self.most_ranks = max(2, *(row["ranks"] for row, _ in points))
        values = [math.log10(y) for _, y in self.points]
        self.low, self.high = math.floor(min(values)), math.floor(max(values)) + 1

    def draw(self, title: str) -> None:
        """Grid, lines and legend."""
        for power in range(self.low, self.high + 1):
            x, y = self._place(1, 10.0**power)
            self.pen.line([(x, y), (self.left + WIDTH - RIGHT, y)], fill="#dfe1e4")
            self._text((x - 8, y), f"{10.0**power:g}", GREY, anchor="rm")
        for power in range(0, self.most_ranks.bit_length(), 3):
            x, y = self._place(2**power, 10.0**self.low)
            self._text((x, y + 8), str(2**power), GREY, anchor="ma")
        self._text((self.left + LEFT, 10), f"{title}, over ranks", BLACK)
        for order, (method, colour) in enumerate(COLOURS.items()):
            line = [self._place(row["ranks"], y) for row, y in self.points if row["method"] == method]
            self.pen.line(line, fill=colour, width=2, joint="curve")
            self._text((self.left + LEFT + 8 + 90 * order, 30), method, colour)

    def _place(self, ranks: int, value: float) -> tuple[float, float]:
        across = math.log2(ranks) / math.log2(self.most_ranks)
        up = (math.log10(value) - self.low) / (self.high - self.low)
        x = self.left + LEFT + across * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def _text(
        self, place: tuple[int | float, int | float], text: str, colour: str, anchor: str = "la"
    ) -> None:
        self.pen.text(place, text, fill=colour, font=self.font, anchor=anchor)
