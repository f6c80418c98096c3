import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from vlm.charts import MAX_POINTS, Curve, draw, number, read_curves, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.5, 1]),
        (0.9, 4.6, [1, 2, 3, 4]),
        (120.0, 3000.0, [1000, 2000, 3000]),
        (5.0, 5.0, [5]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, wanted=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (1234567.0, "1,234,567"), (3.14159, "3.142"), (0.5, "0.5"), (1e-5, "1e-05"), (100.0, "100")],
)
def test_numbers_have_four_digits_and_no_needless_zeros(value: float, expected: str) -> None:
    assert number(value) == expected


def test_curves_are_read_with_blanks_unknown_columns_and_half_a_line_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,train/loss,train/loss/itc,memory/peak_gib,eval/test/acc1,train/lr\n"
        "1,4.5,4.5,1,,nan\n2,4.0,4.0,1,0.1,\n3,,,,0.2,1e-3\n4,3"
    )
    curves = {curve.name: curve.points for curve in read_curves(tmp_path / "metrics.csv")}
    assert curves == {"train/loss": [(1, 4.5), (2, 4.0)], "eval/test/acc1": [(2, 0.1), (3, 0.2)]}


@pytest.mark.parametrize("count", [2, 3, MAX_POINTS + 1, 5000])
def test_drawing_is_well_formed_and_stays_inside(count: int) -> None:
    curve = Curve(name="train/<loss>", points=[(float(x), 1 / (x + 1)) for x in range(count)])
    svg = ElementTree.fromstring(draw(curve))
    width, height = (float(edge) for edge in svg.attrib["viewBox"].split()[2:])
    line = svg.find("polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert 2 <= len(points) <= MAX_POINTS
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_a_constant_curve_can_be_drawn() -> None:
    ElementTree.fromstring(draw(Curve(name="train/lr", points=[(0.0, 2.0), (10.0, 2.0)])))
