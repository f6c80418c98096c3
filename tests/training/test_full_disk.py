"""A disk that fills up while a run or an evaluation writes: one message, and what was there stays."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_disk import fill, small_disk
from tiny import save_tiny, write_tiny_shards
from toy_run import composed, tiny_overrides

from vlm.broken import BrokenSample, Cause
from vlm.cli import main as command
from vlm.cli.train import train_from
from vlm.errors import OutputError, TrainingError
from vlm.evaluation import run_suite
from vlm.inference import verify
from vlm.training import CsvLogger, callbacks, run
from vlm.training.broken import BrokenSamples

FULL = r"{} cannot be written: No space left on device; what was written before is whole: make room"
"""The message, but for what it names."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, size="8m") as disk:
        yield disk


def overrides(toy: Path, disk: Path, *more: str) -> list[str]:
    return tiny_overrides(toy, "run.name=full", f"paths.runs={disk}", *more)


def train(toy: Path, disk: Path, *more: str) -> Path:
    return train_from(composed(overrides(toy, disk, *more)))


def steps(run: Path) -> list[int]:
    """Of the rows with losses; the file has whole lines only."""
    text = (run / "metrics.csv").read_text()
    assert text.endswith("\n")
    return [int(row["step"]) for row in csv.DictReader(text.splitlines()) if row["train/loss"]]


def filled_before(function: Any, disk: Path) -> Any:
    def full(*arguments: Any, **named: Any) -> Any:
        fill(disk)
        return function(*arguments, **named)

    return full


def check_checkpoints(run: Path, names: list[str]) -> None:
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    for name in names:
        verify(run / "checkpoints" / name)


def test_before_anything_is_trained(toy: Path, disk: Path) -> None:
    fill(disk)
    with pytest.raises(OutputError, match=FULL.format(disk / "full")):
        train(toy, disk, "suite=none")
    assert not [path for path in (disk / "full").rglob("*") if path.is_file()]


def test_where_loggers_make_their_files(toy: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_open_loggers", filled_before(run._open_loggers, disk))
    with pytest.raises(OutputError, match=FULL.format(disk / "full")):
        train(toy, disk, "suite=none")


def test_during_an_evaluation_of_a_run_which_then_goes_on(
    toy: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ["evaluation.every_n_steps=4", "checkpoint.keep_best=eval/held_out_en/acc1"]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "run_suite", filled_before(run_suite, disk))
        with pytest.raises(OutputError, match=FULL.format(disk / "full")):
            train(toy, disk, *often)
    assert steps(disk / "full") == [1, 2, 3, 4]
    check_checkpoints(disk / "full", ["step_00000004"])
    (disk / "filler").unlink()
    train(toy, disk, *often, "run.resume=true")
    assert steps(disk / "full") == list(range(1, 9))
    with (disk / "full" / "metrics.csv").open(newline="") as file:
        evaluated = [row["step"] for row in csv.DictReader(file) if row["eval/held_out_en/acc1"]]
    assert evaluated == ["4", "8"]


def test_the_best_checkpoint_that_cannot_be_noted(
    toy: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_best = callbacks.CheckpointFolder.set_best
    monkeypatch.setattr(callbacks.CheckpointFolder, "set_best", filled_before(set_best, disk))
    with pytest.raises(OutputError, match=FULL.format(disk / "full" / "checkpoints")):
        train(toy, disk, "checkpoint.keep_best=eval/held_out_en/acc1")
    check_checkpoints(disk / "full", ["step_00000004", "step_00000008"])


def test_a_row_of_metrics_is_whole_or_absent(disk: Path) -> None:
    logger = CsvLogger(str(disk))
    logger.log_metrics({"a": 0.0}, step=0)
    fill(disk)
    logged = [0]

    def log_on() -> None:
        while True:
            logger.log_metrics({"a": 0.0}, step=logged[-1] + 1)
            logged.append(logged[-1] + 1)

    with pytest.raises(OSError, match="No space left"):  # when a page is full, in the middle of a row
        log_on()
    assert len(logged) > 1
    whole = "".join(f"{step},0\r\n" for step in logged)
    assert (disk / "metrics.csv").read_bytes() == f"step,a\r\n{whole}".encode()
    assert (disk / "metrics.csv").stat().st_size % os.sysconf("SC_PAGE_SIZE")  # else no row was cut


def test_the_list_of_broken_samples_goes_on_once_there_is_room(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = BrokenSamples(disk, max_share=1.0)

    def find(*keys: str) -> None:
        found = [BrokenSample(Cause.NO_IMAGE, "0.tar", key, "long " * 200) for key in keys]
        broken.add({"broken": found, "key": list(keys)}, step=1)
        broken.metrics(device=torch.device("cpu"))

    find("a")
    filler = fill(disk)
    find("b", "c", "d", "e", "f", "g")  # not all fit into the page
    assert "No space left" in caplog.text
    filler.unlink()
    find("g", "h")
    with (disk / "broken_samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [row["key"] for row in rows]
    assert keys[0] == "a"
    assert keys[-2:] == ["g", "h"]
    assert len(set(keys)) == len(keys)
    assert {len(row["reason"]) for row in rows} == {1000}


def test_a_batch_that_cannot_be_kept_for_a_look_is_said_with_the_cause(
    toy: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = filled_before(run.keep_for_a_look, disk)
    monkeypatch.setattr(run, "keep_for_a_look", keep)
    with pytest.raises(TrainingError, match=r"not finite at step .* cannot be kept for a look: .*No space"):
        train(toy, disk, "suite=none", "logger=none", "optimizer.lr=1e30", "trainer.gradient_clip=null")


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_command_ends_on_every_rank_with_one_message(toy: Path, tmp_path: Path, devices: int) -> None:
    with small_disk(tmp_path, size="8m") as disk:
        long = ["trainer.max_steps=4000", "checkpoint.every_n_steps=4000", f"trainer.devices={devices}"]
        words = [sys.executable, "-m", "vlm.cli.train", *overrides(toy, disk, "suite=none", *long)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            while not ((disk / "full" / "metrics.csv").exists() and len(steps(disk / "full")) > 2):
                assert process.poll() is None
                time.sleep(0.01)
            fill(disk)
            printed, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        assert "Traceback" not in errors + printed
        assert errors.count("OutputError: ") == 1
        assert steps(disk / "full")


def test_an_evaluation_by_hand(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "tiny")
    shards = write_tiny_shards(tmp_path / "shards", num_samples=8)
    suite = ["suite=retrieval", f"suite.shards={shards}"]
    evaluate = ["vlm", "evaluate", f"run={tmp_path}/tiny", f"out={disk}/out", *suite, "device=cpu"]

    def message() -> str:
        monkeypatch.setattr(sys, "argv", evaluate)
        with pytest.raises(SystemExit) as end:
            command.main()
        return str(end.value.code)

    monkeypatch.setattr(sys, "argv", evaluate)
    command.main()
    out = disk / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.keys() == {"results.json", "report.html"}
    filler = fill(disk)
    assert re.fullmatch(f"OutputError: {FULL.format(out / 'results.json')} and try again", message())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    os.truncate(filler, filler.stat().st_size - 8192)  # enough for the results
    assert re.fullmatch(f"OutputError: {FULL.format(out / 'report.html')} and try again", message())
    assert {path.name for path in out.iterdir()} == before.keys()
    assert (out / "report.html").read_bytes() == before["report.html"]
    assert json.loads((out / "results.json").read_text())["step"] == 7
