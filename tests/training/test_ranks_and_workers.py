"""A run that goes on with other ranks and workers sees the samples it would have seen."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import tiny_overrides

# `train`, with every rank writing down the keys of its rows; ranks are started with the same file.
SCRIPT = """
import json, os
from vlm.training.module import TrainingModule

training_step = TrainingModule.training_step

def written_down(self, batch, batch_index):
    path = f"{os.environ['KEYS']}/{self.step:04d}_{self.global_rank}.json"
    with open(path, "w") as file:
        json.dump(batch["key"], file)
    return training_step(self, batch, batch_index)

TrainingModule.training_step = written_down

from vlm.cli.train import main
main()
"""
RUN = ["run.name=legs", "run.resume=true", "suite=none", "trainer.max_steps=12", "checkpoint.keep_last=null"]


def leg(toy: Path, folder: Path, *overrides: str) -> dict[int, list[str]]:
    """Train to the end; the keys of each step, rank by rank."""
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    environment = os.environ | {"KEYS": str(folder), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(folder / "train.py"), *tiny_overrides(toy, *RUN, *overrides)]
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=250)
    keys: dict[int, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        keys.setdefault(int(path.name[:4]) + 1, []).extend(json.loads(path.read_text()))
    return keys


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.long
def test_one_rank_then_two_then_one_with_more_workers_each_time(toy: Path, tmp_path: Path) -> None:
    run = toy / "runs" / "legs"
    reference = leg(toy, tmp_path / "whole", "data.num_workers=0")
    expected = losses(run)
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    shutil.rmtree(run / "checkpoints" / "step_00000008")
    two = leg(toy, tmp_path / "two", "trainer.devices=2", "data.num_workers=1")
    assert two == {step: keys for step, keys in reference.items() if step > 4}
    assert losses(run) == pytest.approx(expected, abs=1e-5)
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    one = leg(toy, tmp_path / "one", "data.num_workers=2")
    assert one == {step: keys for step, keys in reference.items() if step > 8}
    assert losses(run) == pytest.approx(expected, abs=1e-5)
    assert len(set(reference[1])) == 32
