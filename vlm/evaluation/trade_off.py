"""One metric over another, for checkpoints between two: as a picture and as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlm import charts
from vlm.errors import ConfigError
from vlm.files import replacing, write_json, writing

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 560, 90, 40, 40, 70
GREY, LIGHT, BLACK, BLUE, ORANGE = "#5c636b", "#dfe1e4", "#1c1f23", "#2456a6", "#b5541c"
COLOURS = {0.0: ORANGE, 1.0: BLUE}
RADIUS = 6
SIDES = (
    ("lm", 1, 0),
    ("rm", -1, 0),
    ("mb", 0, -1),
    ("mt", 0, 1),
    ("lb", 1, -1),
    ("lt", 1, 1),
    ("rb", -1, -1),
)
"""Where a label may stand beside its point: the anchor of its text, and the way to it."""
_GENERAL, _COMPOSITIONAL = "zeroshot_classification", "image_caption_selection"

Place = tuple[int | float, int | float]
Box = tuple[int | float, int | float, int | float, int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A checkpoint between two, and what it scores."""

    weight: float
    """Of the end: 0 is the start."""
    checkpoint: str
    metrics: Mapping[str, float]
    """By `<evaluator>/<metric>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Two metrics, each as `<evaluator>/<metric>`; None where nothing measures one."""

    x: str | None
    y: str | None

    @classmethod
    def choose(cls, results: Mapping[str, Any], *, x: str | None, y: str | None) -> "Axes":
        """What is asked for; else general ability across, compositional ability up.

        These are the first zero-shot classification and the first true against false captions, of which all
        cases together, where there is such a metric, stand for the categories.

        Args:
            results: as `results.json` has them.

        Raises:
            ConfigError: there is no such metric; those that there are are named.
        """
        known = metrics_of(results)
        for key, name in (("x", x), ("y", y)):
            if name is not None and name not in known:
                near = [other for other in known if other.partition("/")[0] == name.partition("/")[0]]
                raise ConfigError(f"{key}={name} is no metric; there are {', '.join(near or known)}")
        return cls(x=x or _first(results, _GENERAL), y=y or _first(results, _COMPOSITIONAL))


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """All metrics of `results.json` by `<evaluator>/<metric>`."""
    return {
        f"{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result["metrics"].items()
    }


def write_trade_off(
    folder: Path, points: Sequence[Scored], axes: Axes, *, start: str, end: str
) -> Path | None:
    """Write `trade_off.json`, and `trade_off.png` where both axes have a metric; on the main rank.

    Returns the picture's path.
    """
    content = {"start": start, "end": end, **asdict(axes), "points": [asdict(point) for point in points]}
    path, picture = folder / "trade_off.json", folder / "trade_off.png"
    write_json(path, content, indent=2)
    if axes.x is None or axes.y is None:
        return None
    with writing(picture), replacing(picture) as draft:
        draw_trade_off(points, x=axes.x, y=axes.y).save(draft, "png")
    return picture


def draw_trade_off(points: Sequence[Scored], *, x: str, y: str) -> Image.Image:
    """A point for each weight, in their order joined by a line; those of 0 and 1 are called start and end."""
    ordered = sorted(points, key=lambda point: point.weight)
    values = [(point.metrics[x], point.metrics[y]) for point in ordered]
    return _Plot(values).draw([point.weight for point in ordered], x=x, y=y)


def _first(results: Mapping[str, Any], task: str) -> str | None:
    for name, result in results.items():
        if result["task"] == task and result["metrics"]:
            metrics = result["metrics"]
            return f"{name}/{'acc' if 'acc' in metrics else next(iter(metrics))}"
    return None


class _Plot:
    def __init__(self, values: Sequence[Place]) -> None:
        self.values = values
        self.picture = Image.new("RGB", (WIDTH, HEIGHT), "#ffffff")
        self.pen = ImageDraw.Draw(self.picture)
        self.spans = [_span([value[axis] for value in values]) for axis in (0, 1)]

    def draw(self, weights: Sequence[float], *, x: str, y: str) -> Image.Image:
        self._grid()
        self._text((LEFT, 12), f"{y}, over {x}, by the weight of the end", BLACK)
        self._text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 30), x, BLACK, anchor="ma")
        places = [self._place(*value) for value in self.values]
        taken = [_around(place, RADIUS) for place in places]
        for one, other in pairwise(places):
            self.pen.line([one, other], fill=GREY, width=2)
            taken += [_around(_between(one, other, step / 64), 1) for step in range(65)]
        for weight, place in zip(weights, places, strict=True):
            self.pen.ellipse(_around(place, RADIUS), fill=COLOURS.get(weight, GREY), outline="#ffffff")
        for weight, place in zip(weights, places, strict=True):
            taken.append(self._label(weight, place, taken))
        return self.picture

    def _grid(self) -> None:
        (low_x, high_x), (low_y, high_y) = self.spans
        for value in charts.ticks(low_x, high_x, wanted=6):
            across, bottom = self._place(value, low_y)
            self.pen.line([(across, TOP), (across, bottom)], fill=LIGHT)
            self._text((across, bottom + 8), charts.number(value), GREY, anchor="ma")
        for value in charts.ticks(low_y, high_y, wanted=6):
            left, down = self._place(low_x, value)
            self.pen.line([(left, down), (WIDTH - RIGHT, down)], fill=LIGHT)
            self._text((left - 8, down), charts.number(value), GREY, anchor="rm")

    def _label(self, weight: float, place: Place, taken: Sequence[Box]) -> Box:
        """On a side of its point where nothing is yet, else to its right."""
        text = f"{weight:g}" + {0.0: " start", 1.0: " end"}.get(weight, "")
        font, found = ImageFont.load_default(14), []
        for anchor, across, down in SIDES:
            at = place[0] + across * (RADIUS + 5), place[1] + down * (RADIUS + 5)
            found.append((at, anchor, self.pen.textbbox(at, text, font=font, anchor=anchor)))
        free = [side for side in found if _inside(side[2]) and not any(_overlap(side[2], t) for t in taken)]
        at, anchor, box = (free or found)[0]
        self._text(at, text, COLOURS.get(weight, BLACK), anchor=anchor)
        return box

    def _place(self, x: float, y: float) -> Place:
        across, up = (
            (value - low) / (high - low) for value, (low, high) in zip((x, y), self.spans, strict=True)
        )
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def _text(self, place: Place, text: str, colour: str, anchor: str = "la") -> None:
        self.pen.text(place, text, fill=colour, font=ImageFont.load_default(14), anchor=anchor)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the most, with room around; differences below a hundredth are not blown up."""
    middle, half = (min(values) + max(values)) / 2, max((max(values) - min(values)) / 2, 0.005)
    return middle - 1.25 * half, middle + 1.25 * half


def _around(place: Place, radius: int) -> Box:
    return place[0] - radius, place[1] - radius, place[0] + radius, place[1] + radius


def _between(one: Place, other: Place, share: float) -> Place:
    return one[0] + share * (other[0] - one[0]), one[1] + share * (other[1] - one[1])


def _inside(box: Box) -> bool:
    return box[0] >= LEFT and box[1] >= TOP and box[2] <= WIDTH and box[3] <= HEIGHT - BOTTOM


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
