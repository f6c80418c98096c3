"""What the tables of `vlm bench` say of measurements, without measuring."""

from typing import Any

import pytest

from vlm.bench.loss import loss_notes
from vlm.bench.rounds import Ratio
from vlm.bench.step_report import require_comparable, step_report
from vlm.errors import ConfigError

SPLIT = {"image": 0.2, "text": 0.1, "loss": 0.05, "backward": 0.5, "optimizer": 0.1, "rest": 0.05}


def round_of(rate: float, **changes: Any) -> dict[str, Any]:
    return {
        "samples_per_s": rate,
        "split": SPLIT,
        "flops_per_sample": 2e9,
        "peak_tflops": 1.0,
        "peak_from": "somewhere",
        "text_length": 77,
        "parameters": 1_000_000,
        "ranks": 1,
        "threads": 2,
        "step": "does it all.",
        **changes,
    }


def test_a_ratio_is_taken_within_each_round() -> None:
    """A round in which the machine was slow for both says as much as the others."""
    assert str(Ratio.of([300.0, 30.0, 320.0], [200.0, 20.0, 200.0])) == "1.50 (1.50 to 1.60)"
    assert str(Ratio.of([3.0], [2.0])) == "1.50"


def test_rounds_that_are_not_in_pairs_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Ratio.of([1.0, 2.0], [1.0])


def test_the_table_of_a_step_has_medians_split_and_ratio() -> None:
    found = {
        "vlm": [round_of(rate) for rate in (90.0, 120.0, 100.0)],
        "open_clip": [round_of(rate, parameters=1_000_100) for rate in (60.0, 60.0, 80.0)],
    }
    report = step_report(found, rows=8, steps=5, precision="32-true")
    ours, theirs = report.rows
    assert (ours["samples/s"], ours["least"], ours["most"]) == (100.0, 90.0, 120.0)
    assert (theirs["samples/s"], theirs["parameters"]) == (60.0, 1_000_100)
    assert (ours["image %"], ours["encode %"], ours["backward %"]) == (20.0, 30.0, 50.0)
    assert (ours["MFU %"], theirs["MFU %"]) == (20.0, 12.0)
    assert report.notes[-1].endswith("in the same round: 1.50 (1.25 to 2.00).")
    assert "nothing is loaded" in report.notes[0]


def test_a_compiled_model_has_one_share_for_both_towers() -> None:
    split = {"encode": 0.3, "loss": 0.1, "backward": 0.5, "optimizer": 0.1, "rest": 0.0}
    found = {"vlm": [round_of(2.0)], "open_clip": [round_of(1.0, split=split)]}
    row = step_report(found, rows=8, steps=5, precision="32-true").rows[1]
    assert (row["image %"], row["text %"], row["encode %"]) == ("", "", 30.0)


def test_longer_texts_are_not_counted_as_the_same_work() -> None:
    found = {"vlm": [round_of(2.0, text_length=20)], "open_clip": [round_of(1.0)]}
    rows = step_report(found, rows=8, steps=5, precision="32-true").rows
    assert [row["tokens"] for row in rows] == [20, 77]
    assert rows[1]["MFU %"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 970_000}, r"970,000 parameters and the model here 1,000,000"),
        ({"threads": 1}, "1 threads, the step here with 2"),
    ],
)
def test_another_step_is_no_peer(change: dict[str, Any], message: str) -> None:
    require_comparable(round_of(1.0), round_of(1.0, parameters=985_000))
    with pytest.raises(ConfigError, match=message):
        require_comparable(round_of(1.0), round_of(1.0, **change))


def test_a_step_of_several_devices_has_no_peer() -> None:
    with pytest.raises(ConfigError, match=r"one device, not on 2; trainer\.devices=1"):
        require_comparable(round_of(1.0, ranks=2), round_of(1.0))


def test_tiles_are_put_beside_the_others_of_their_kind() -> None:
    def rounds(seconds: list[float], peak: int) -> list[dict[str, Any]]:
        return [{"seconds": [9.0, value, 0.0], "peak_bytes": peak} for value in seconds]

    found = {
        "softmax local_rows": rounds([2.0, 4.0], 100),
        "softmax tiled": rounds([1.0, 3.0], 10),
        "open_clip ClipLoss": rounds([1.0, 1.0], 200),
        "sigmoid tiled": rounds([1.0, 3.0], 10),
    }
    over_rows, over_peer = loss_notes(found)
    assert over_rows == (
        "softmax tiled over softmax local_rows, in the same round: memory 0.10 (0.10 to 0.10), "
        "time 0.62 (0.50 to 0.75)."
    )
    assert "open_clip ClipLoss" in over_peer
    assert "memory 0.05 (0.05 to 0.05), time 2.00 (1.00 to 3.00)." in over_peer
