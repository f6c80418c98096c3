import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.errors import ConfigError
from vlm.evaluation.trade_off import BLUE, ORANGE, Axes, Scored, draw_trade_off, write_trade_off

RESULTS = {
    "search": {"task": "zeroshot_retrieval", "metrics": {"recall": 0.5}},
    "parts": {"task": "image_caption_selection", "metrics": {"swap_acc": 0.4, "acc": 0.6}},
    "names": {"task": "zeroshot_classification", "metrics": {"acc1": 0.7, "acc5": 0.9}},
    "more": {"task": "image_caption_selection", "metrics": {"one_acc": 0.4}},
}


def scored(weight: float, x: float, y: float) -> Scored:
    return Scored(weight=weight, checkpoint="here", metrics={"names/acc1": x, "parts/acc": y})


def middle(picture: Image.Image, colour: str) -> tuple[float, float]:
    """Mean column and row of the pixels of a colour."""
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    rows, columns = np.nonzero((np.asarray(picture) == wanted).all(axis=2))
    assert len(rows) > 20
    return float(columns.mean()), float(rows.mean())


def test_axes_are_the_first_of_their_kind_and_all_cases_before_categories() -> None:
    assert Axes.choose(RESULTS, x=None, y=None) == Axes(x="names/acc1", y="parts/acc")
    rest = {name: RESULTS[name] for name in ("search", "more")}
    assert Axes.choose(rest, x=None, y=None) == Axes(x=None, y="more/one_acc")
    assert Axes.choose(rest, x="search/recall", y=None).x == "search/recall"
    with pytest.raises(ConfigError, match="y=parts/none is no metric; there are parts/swap_acc, parts/acc"):
        Axes.choose(RESULTS, x=None, y="parts/none")


def test_start_and_end_stand_where_their_scores_are() -> None:
    points = [scored(1.0, 0.7, 0.9), scored(0.5, 0.78, 0.88), scored(0.0, 0.8, 0.7)]
    picture = draw_trade_off(points, x="names/acc1", y="parts/acc")
    (end_across, end_down), (start_across, start_down) = middle(picture, BLUE), middle(picture, ORANGE)
    assert end_across < start_across - 200
    assert end_down < start_down - 200


@pytest.mark.parametrize(
    "scores", [[(0.0, 0.0)], [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5)], [(0.0, 1.0), (1.0, 0.0)]]
)
def test_equal_and_single_points_are_drawn(scores: list[tuple[float, float]], tmp_path: Path) -> None:
    points = [scored(number / 4, *score) for number, score in enumerate(scores)]
    axes = Axes(x="names/acc1", y="parts/acc")
    path = write_trade_off(tmp_path, points, axes, start="a", end="b")
    assert path == tmp_path / "trade_off.png"
    middle(Image.open(path), ORANGE)
    content = json.loads((tmp_path / "trade_off.json").read_text())
    assert [tuple(point["metrics"].values()) for point in content["points"]] == scores
