import csv
from pathlib import Path

from vlm.training import CsvLogger


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_metric_becomes_a_column_and_keeps_the_old_rows(tmp_path: Path) -> None:
    logger = CsvLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 2.0, "b": 3.0}, step=2)
    assert rows(tmp_path) == [{"step": "1", "a": "1", "b": ""}, {"step": "2", "a": "2", "b": "3"}]


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    first = CsvLogger(str(tmp_path))
    for step in (10, 20, 30):
        first.log_metrics({"a": float(step)}, step=step)
    CsvLogger(str(tmp_path)).log_metrics({"a": -1.0}, step=30)
    assert [row["a"] for row in rows(tmp_path)] == ["10", "20", "-1"]


def test_a_row_replaces_the_one_of_its_step_and_kind(tmp_path: Path) -> None:
    first = CsvLogger(str(tmp_path))
    for step in (10, 20):
        first.log_metrics({"a": float(step)}, step=step)
        first.log_metrics({"b": float(step)}, step=step)
    resumed = CsvLogger(str(tmp_path))  # at step 20, whose second row is logged again
    resumed.log_metrics({"b": -1.0}, step=20)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("10", "10", ""),
        ("10", "", "10"),
        ("20", "20", ""),
        ("20", "", "-1"),
    ]
    resumed = CsvLogger(str(tmp_path))  # at step 10: both rows are logged again
    resumed.log_metrics({"a": -2.0}, step=20)
    resumed.log_metrics({"b": -3.0}, step=20)
    assert [(row["a"], row["b"]) for row in rows(tmp_path)[2:]] == [("-2", ""), ("", "-3")]


def test_half_a_line_is_no_row(tmp_path: Path) -> None:
    CsvLogger(str(tmp_path)).log_metrics({"a": 1.0}, step=10)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")
    CsvLogger(str(tmp_path)).log_metrics({"a": 2.0}, step=20)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20"]
