"""How the runs of a sweep fared over their steps: a small picture for each question."""

from dataclasses import dataclass

from markupsafe import Markup

from vlm import charts
from vlm.evaluation.sweep_report.cells import Cell, Question, Sweep
from vlm.evaluation.sweep_report.table import is_share

NUM_COLOURS = 8
"""That the page has for lines; further runs share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """The curves of one question."""

    question: Question
    metric: str
    drawing: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """A chart for each question, and the lines that they have in common."""

    legend: list[tuple[str, int]]
    """Runs and their colours."""
    charts: list[Chart]


def make_curves(sweep: Sweep) -> Curves:
    """Of runs with two steps or more; empty without one."""
    runs = _runs(sweep)
    colours = {name: place % NUM_COLOURS for place, name in enumerate(runs)}
    found = [_chart(sweep, question, runs, colours) for question in sweep.questions]
    return Curves(legend=list(colours.items()), charts=[chart for chart in found if chart is not None])


def _runs(sweep: Sweep) -> dict[str, list[str]]:
    """The checkpoints of each run by ascending step; the average of weights is a run of its own."""
    found: dict[str, list[str]] = {}
    for point in sweep.checkpoints:
        if point.run is not None and point.step is not None:
            name = point.run if point.weights in (None, "model") else f"{point.run} ({point.weights})"
            found.setdefault(name, []).append(point.name)
    return {name: points for name, points in found.items() if len(points) > 1}


def _chart(
    sweep: Sweep, question: Question, runs: dict[str, list[str]], colours: dict[str, int]
) -> Chart | None:
    lines, metric = [], None
    for name, points in runs.items():
        found = [sweep.cells.get((point, question)) for point in points]
        cells = [cell for cell in found if cell is not None and cell.value is not None]
        if len(cells) > 1:
            metric = cells[0].main
            lines.append(_line(name, cells, colours[name]))
    if metric is None:
        return None
    return Chart(question=question, metric=metric, drawing=charts.draw_lines(lines, name=str(question)))


def _line(name: str, cells: list[Cell], colour: int) -> charts.Line:
    scale = 100 if is_share(cells[0].main) else 1
    bands = [cell.confidence.get(cell.main) for cell in cells]
    known = [(scale * low, scale * high) for low, high in filter(None, bands)]
    return charts.Line(
        name=name,
        points=[(float(cell.checkpoint.step or 0), scale * (cell.value or 0.0)) for cell in cells],
        band=known if len(known) == len(cells) else None,
        colour=colour,
    )
