"""Curves and bars as inline SVG."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

SHOWN = re.compile(
    r"train/.+|time/samples_per_s"
    r"|eval/[^/]+/(acc1|(image|text)_retrieval_recall@1|image_to_image_recall@1|map|\w+_acc1?)"
)
MAX_POINTS = 240
WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One logged value over the steps of a run."""

    name: str
    points: list[Point]
    across: str = "step"
    """What the first number of a point is."""

    @property
    def last(self) -> float:
        """The value logged last."""
        return self.points[-1][1]


def read_curves(metrics_csv: Path) -> list[Curve]:
    """The curves worth drawing from a table with a column `step`.

    Empty cells, cells that are no numbers and single points are left out.
    """
    points: dict[str, list[Point]] = {}
    with metrics_csv.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in _rows(line for line in file if line.endswith("\n")):  # the last may be half written
            step = _number(row.get("step"))
            for name, cell in row.items():
                value = _number(cell)
                if step is not None and value is not None and SHOWN.fullmatch(name or ""):
                    points.setdefault(name, []).append((step, value))
    terms = [name for name in points if name.startswith("train/loss/")]
    if len(terms) == 1:
        del points[terms[0]]  # the loss itself
    return [Curve(name=name, points=found) for name, found in points.items() if len(found) > 1]


def _rows(file: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows up to where the table cannot be read on."""
    with suppress(csv.Error):
        yield from csv.DictReader(file)


def _number(cell: object) -> float | None:
    try:
        value = float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One of several curves in a picture."""

    name: str
    points: list[Point]
    band: list[tuple[float, float]] | None
    """How low and how high each point may lie."""
    colour: int
    """Of those that the page has."""


class _Frame:
    """Where points stand, and the lines and labels around them."""

    def __init__(self, across: Sequence[float], values: Sequence[float]) -> None:
        self._x = (min(across), max(across))
        y_ticks = ticks(min(values), max(values), wanted=4)
        self._y = (min(y_ticks[0], *values), max(y_ticks[-1], *values))
        self.parts = [_grid_line(self._place(self._x[0], y)[1], number(y)) for y in y_ticks]
        self.parts += [_x_label(self._place(x, self._y[0])[0], number(x)) for x in ticks(*self._x, wanted=4)]

    def path(self, points: Iterable[Point]) -> str:
        """Points as SVG has them."""
        return " ".join(",".join(self._place(x, y)) for x, y in points)

    def dot(self, point: Point) -> str:
        """Where a point stands, as attributes of a circle."""
        x, y = self._place(*point)
        return f'cx="{x}" cy="{y}"'

    def svg(self, label: str) -> Markup:
        """The picture."""
        said, parts = Markup.escape(label), "".join(self.parts)
        return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{parts}</svg>')

    def _place(self, x: float, y: float) -> tuple[str, str]:
        across = _share(x, self._x) * (WIDTH - LEFT - RIGHT) + LEFT
        down = (1 - _share(y, self._y)) * (HEIGHT - TOP - BOTTOM) + TOP
        return f"{across:.1f}", f"{down:.1f}"


def draw(curve: Curve) -> Markup:
    """An SVG that scales with its column and takes its colours from the page."""
    points = _thinned(curve.points)
    frame = _Frame([x for x, _ in curve.points], [value for _, value in points])
    frame.parts.append(f'<polyline class="curve" points="{frame.path(points)}"/>')
    return frame.svg(_ends(curve.name, curve.points, across=curve.across))


def draw_lines(lines: Sequence[Line], *, name: str, across: str = "step") -> Markup:
    """An SVG of several curves of few points each, in the size of `draw`, with what is uncertain as bands."""
    values = [value for line in lines for _, value in line.points]
    values += [edge for line in lines for pair in line.band or [] for edge in pair]
    frame = _Frame([x for line in lines for x, _ in line.points], values)
    for line in lines:
        if line.band is not None:
            steps = [x for x, _ in line.points]
            low, high = (
                [(x, pair[side]) for x, pair in zip(steps, line.band, strict=True)] for side in (0, 1)
            )
            frame.parts.append(
                f'<polygon class="band line-{line.colour}" points="{frame.path([*low, *high[::-1]])}"/>'
            )
    for line in lines:
        frame.parts.append(f'<polyline class="curve line-{line.colour}" points="{frame.path(line.points)}"/>')
        frame.parts += [
            f'<circle class="dot line-{line.colour}" {frame.dot(point)} r="2.6"><title>'
            f"{Markup.escape(line.name)}, {across} {number(point[0])}: {number(point[1])}</title></circle>"
            for point in line.points
        ]
    told = "; ".join(_ends(line.name, line.points, across=across) for line in lines)
    return frame.svg(f"{name}: {told}")


def _ends(name: str, points: Sequence[Point], *, across: str) -> str:
    """The first and the last point in words."""
    (first, start), (last, end) = points[0], points[-1]
    return f"{name}: {number(start)} at {across} {number(first)}, {number(end)} at {across} {number(last)}"


def draw_bars(bars: Sequence[tuple[str, int]], *, name: str) -> Markup:
    """An SVG of counts with a label under each bar, in the size and colours of a curve."""
    most = max(count for _, count in bars)
    y_ticks = [count for count in ticks(0.0, float(max(most, 1)), wanted=4) if count == int(count)]
    slot = (WIDTH - LEFT - RIGHT) / len(bars)
    base, height = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM
    parts = [_grid_line(f"{base - height * y / max(most, 1):.1f}", number(y)) for y in y_ticks]
    every = -(-len(bars) // 8)  # labels that have room
    for place, (label, count) in enumerate(bars):
        left, tall = LEFT + place * slot, height * count / max(most, 1)
        parts.append(
            f'<rect class="bar" x="{left + 0.1 * slot:.1f}" y="{base - tall:.1f}" width="{0.8 * slot:.1f}" '
            f'height="{tall:.1f}"><title>{Markup.escape(label)}: {count:,}</title></rect>'
        )
        if place % every == 0:
            parts.append(_x_label(f"{left + slot / 2:.1f}", Markup.escape(label)))
    told = Markup.escape(f"{name}: " + ", ".join(f"{label}: {count}" for label, count in bars))
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, *, wanted: int) -> list[float]:
    """Round numbers within [low, high], about `wanted` of them: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def number(value: float) -> str:
    """Four significant digits, thousands apart, no needless zeros."""
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.2g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS, each the mean of its neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def _share(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return (value - low) / (high - low) if high > low else 0.5


def _grid_line(y: str, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y}" dy="0.32em" text-anchor="end">{label}</text>'
    )


def _x_label(x: str, label: str) -> str:
    return f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'
