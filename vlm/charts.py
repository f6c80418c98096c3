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


def draw(curve: Curve) -> Markup:
    """An SVG that scales with its column and takes its colours from the page."""
    points = _thinned(curve.points)
    x_ticks = ticks(curve.points[0][0], curve.points[-1][0], wanted=4)
    values = [value for _, value in points]
    y_ticks = ticks(min(values), max(values), wanted=4)
    x_span = (curve.points[0][0], curve.points[-1][0])
    y_span = (min(y_ticks[0], *values), max(y_ticks[-1], *values))

    def place(x: float, y: float) -> tuple[str, str]:
        across = _share(x, x_span) * (WIDTH - LEFT - RIGHT) + LEFT
        down = (1 - _share(y, y_span)) * (HEIGHT - TOP - BOTTOM) + TOP
        return f"{across:.1f}", f"{down:.1f}"

    parts = [_grid_line(place(x_span[0], y)[1], number(y)) for y in y_ticks]
    parts += [_x_label(place(x, y_span[0])[0], number(x)) for x in x_ticks]
    line = " ".join(",".join(place(x, y)) for x, y in points)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    label = Markup.escape(
        f"{curve.name}: {number(curve.points[0][1])} at {curve.across} {number(x_span[0])}, "
        f"{number(curve.last)} at {curve.across} {number(x_span[1])}"
    )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


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
