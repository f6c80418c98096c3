"""A signal during an evaluation ends the run soon; the evaluation is made up for when it goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.errors import StoppedError
from vlm.evaluation import Evaluator, Result, run_suite
from vlm.inference import Embedder
from vlm.training import callbacks

SETTINGS = ["evaluation.every_n_steps=4", "evaluation.batch_size=8", "checkpoint.every_n_steps=100"]


def train(toy: Path, name: str) -> Path:
    return train_from(composed(tiny_overrides(toy, *SETTINGS, f"run.name={name}", "run.resume=true")))


def logged(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k.startswith(("step", "train/", "eval/"))} for row in rows]


def evaluated(run: Path) -> list[str]:
    """Steps with a row of scores."""
    return [row["step"] for row in logged(run) if row.get("eval/held_out_en/acc1")]


class SignalIn:
    """Runs suites, sends this process a signal at the start of one, and counts its batches."""

    def __init__(self, suite: int) -> None:
        self.suites_left = suite
        self.batches = 0

    def __call__(self, evaluators: Mapping[str, Evaluator], embedder: Embedder) -> dict[str, Result]:
        self.suites_left -= 1
        if self.suites_left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            heed = embedder.between_batches
            assert heed is not None

            def count() -> None:
                self.batches += 1
                heed()

            embedder.between_batches = count
        return run_suite(evaluators, embedder)


def stopped(toy: Path, monkeypatch: pytest.MonkeyPatch, *, suite: int) -> tuple[str, int]:
    """The message of a run that gets a signal in its n-th evaluation, and the batches that took."""
    runner = SignalIn(suite)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "run_suite", runner)
        with pytest.raises(StoppedError) as caught:
            train(toy, "asked")
    assert caught.value.exit_code == 75
    return str(caught.value), runner.batches


@pytest.mark.long
def test_the_run_ends_after_one_batch_and_later_evaluates_as_if_nothing_had_been(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(toy, "not_asked")
    run = toy / "runs" / "asked"
    message, batches = stopped(toy, monkeypatch, suite=1)
    assert f"SIGTERM: {run} stopped after step 4" in message
    assert batches == 1
    assert (run / "checkpoints" / "step_00000004").is_dir()  # though none was due
    assert evaluated(run) == []

    message, batches = stopped(toy, monkeypatch, suite=1)  # in the one that is made up for
    assert "stopped after step 4" in message
    assert batches == 1
    message, _ = stopped(toy, monkeypatch, suite=2)
    assert "stopped after step 8" in message
    assert evaluated(run) == ["4"]

    train(toy, "asked")  # there is nothing left but an evaluation
    assert logged(run) == logged(whole)
    scores = json.loads((run / "checkpoints" / "step_00000008" / "evaluation.json").read_text())
    assert f"{scores['eval/held_out_en/acc1']:.8g}" == logged(run)[-1]["eval/held_out_en/acc1"]
    before = (run / "metrics.csv").read_bytes()
    train(toy, "asked")
    assert (run / "metrics.csv").read_bytes() == before


def test_the_evaluation_before_the_first_step_heeds_a_signal_too(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_before(name: str) -> Path:
        words = [*SETTINGS, "evaluation.before=true", f"run.name={name}", "run.resume=true"]
        return train_from(composed(tiny_overrides(toy, *words)))

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "run_suite", SignalIn(1))
        with pytest.raises(StoppedError, match="stopped after step 0"):
            train_before("asked_before")
    run = train_before("asked_before")  # from the start, as nothing was written
    assert evaluated(run) == ["0", "4", "8"]
    assert logged(run) == logged(train_before("not_asked_before"))


@pytest.mark.long
def test_two_ranks_leave_an_evaluation_together(toy: Path) -> None:
    slow = ["evaluation.batch_size=1", "trainer.devices=2", "run.name=asked_two", "run.resume=true"]
    command = [sys.executable, "-m", "vlm.cli.train", *tiny_overrides(toy, *SETTINGS, *slow)]
    run = toy / "runs" / "asked_two"
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not ((run / "metrics.csv").exists() and logged(run)[-1]["step"] == "4"):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert "stopped after step 4" in errors
    assert evaluated(run) == []
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    assert evaluated(run) == ["4", "8"]
