"""The table of thousands of ranks, from speeds that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.bench.scale import METHODS, Sizes, Speed, scale_report, towers_seconds
from vlm.bench.scale_plot import COLOURS, draw_scale
from vlm.errors import ConfigError
from vlm.losses import gathered_bytes, logits_bytes, traffic_bytes

SIZES = Sizes(pairs=128, dim=16, node_size=4, most_ranks=64)
SPEED = Speed(local_rows_ns=3.0, tiled_ns=2.0, node_gb_per_s=10.0, fabric_gb_per_s=1.0, towers_s=0.5)


def row(method: str, ranks: int, speed: Speed = SPEED) -> dict[str, Any]:
    rows = scale_report(speed, SIZES, given=[]).rows
    return next(dict(row) for row in rows if (row["method"], row["ranks"]) == (method, ranks))


def test_bytes_are_those_of_the_formulas() -> None:
    sizes = {"pairs": 128, "all_pairs": 128 * 64}
    found = row("local_rows", 64)
    assert found["logits"] == pytest.approx(logits_bytes("local_rows", **sizes) / 2**30, rel=1e-2)
    vectors: dict[str, Any] = {"kind": "softmax", "dim": 16, **sizes}
    assert found["gathered"] == pytest.approx(gathered_bytes("local_rows", **vectors) / 2**30, rel=1e-2)
    assert found["received"] == pytest.approx(traffic_bytes("local_rows", **vectors) / 2**30, rel=1e-2)


@pytest.mark.parametrize(("ranks", "gb_per_s"), [(4, 10), (64, 1)])
def test_time_is_arithmetic_and_traffic_over_what_joins_the_ranks(ranks: int, gb_per_s: int) -> None:
    pairs = 128 * ranks
    traffic = traffic_bytes("tiled", kind="softmax", pairs=128, all_pairs=pairs, dim=16)
    seconds = 128 * pairs * 2e-9 + traffic / (gb_per_s * 1e9)
    assert row("tiled", ranks)["loss"] == pytest.approx(seconds, rel=1e-2)
    assert row("tiled", ranks)["step"] == pytest.approx(seconds + 0.5, rel=1e-2)


def test_groups_take_what_one_machine_takes() -> None:
    assert row("grouped", 2) == row("tiled", 2) | {"method": "grouped"}
    assert row("grouped", 64) == row("tiled", 4) | {"method": "grouped", "ranks": 64}


def test_every_power_of_two_is_there_up_to_the_most() -> None:
    rows = scale_report(SPEED, SIZES, given=[]).rows
    assert [r["ranks"] for r in rows] == [1, 2, 4, 8, 16, 32, 64] * len(METHODS)


def test_what_was_not_measured_is_named() -> None:
    assert "All measured." in scale_report(SPEED, SIZES, given=[]).notes[0]
    note = scale_report(SPEED, SIZES, given=["fabric_gb_per_s"]).notes[0]
    assert note.endswith("Not measured but given: fabric_gb_per_s.")


def test_the_time_of_a_step_is_that_of_the_record_without_its_loss(tmp_path: Path) -> None:
    rounds = [{"samples_per_s": rate, "split": {"loss": 0.2}} for rate in (50.0, 64.0, 80.0)]
    path = tmp_path / "step.json"
    path.write_text(json.dumps({"raw": {"vlm": rounds}}))
    assert towers_seconds(path, 128) == pytest.approx(0.8 * 128 / 64)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"is no step\.json"):
        towers_seconds(path, 128)


@pytest.mark.parametrize("towers_s", [0.5, None])
def test_each_line_is_drawn(towers_s: float | None, tmp_path: Path) -> None:
    speed = Speed(local_rows_ns=3.0, tiled_ns=2.0, node_gb_per_s=10.0, fabric_gb_per_s=1.0, towers_s=towers_s)
    draw_scale(scale_report(speed, SIZES, given=[]).rows, tmp_path / "scale.png")
    with Image.open(tmp_path / "scale.png") as picture:
        colours = {colour for _, colour in picture.getcolors(2**16) or []}
        assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS.values()} <= colours
        assert picture.width == 1200
