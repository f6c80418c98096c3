"""kill -9 at any moment costs time, and nothing else."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vlm

KILLS = 20
TESTS = Path(__file__).parents[1]


def logged(run: Path) -> list[dict[str, str]]:
    """Everything that was computed, as it stands in the file; not how long it took."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k.startswith(("step", "train/", "eval/"))} for row in rows]


def files(folder: Path) -> list[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in found if "tfevents" not in name)  # each start has a file of its own


@pytest.mark.long
def test_a_run_killed_twenty_times_ends_as_if_it_had_never_been(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "killed_run.py"), str(tmp_path), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == KILLS
    assert all(kill["killed"] and kill["whole_lines"] for kill in kills)
    assert sum(kill["writing"] for kill in kills) >= 4  # in the middle of a checkpoint: its draft is left
    assert kills[0]["making_data"]
    assert not kills[0]["checkpoints"]

    whole, cut = (tmp_path / name / "runs" / "run" for name in ("whole", "cut"))
    assert logged(cut) == logged(whole)
    weights = [vlm.load(run).model.state_dict() for run in (cut, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    best = [(run / "checkpoints" / "best.json").read_text() for run in (cut, whole)]
    assert best[0] == best[1]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")  # no draft, no trash
