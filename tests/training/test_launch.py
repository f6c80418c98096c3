"""A run has the ranks that its launcher has started, or says so at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.errors import ConfigError
from vlm.training.launch import check_ranks

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def test_ranks_that_fit_pass() -> None:
    check_ranks({}, devices=2, num_nodes=1)
    check_ranks(TORCHRUN, devices=2, num_nodes=1)
    check_ranks(SRUN, devices=4, num_nodes=2)
    check_ranks({"WORLD_SIZE": "4"}, devices=2, num_nodes=2)  # a rank that Lightning has started


@pytest.mark.parametrize(
    ("environment", "devices", "message"),
    [
        (
            TORCHRUN,
            1,
            "trainer.devices=1 x trainer.num_nodes=1 is 1 rank, torchrun has started 2; set ",
        ),
        (TORCHRUN, 3, "is 3 ranks, torchrun has started 2; set trainer.devices=2 trainer.num_nodes=1"),
        (SRUN, 1, "is 1 rank, srun has started 8; set trainer.devices=4 trainer.num_nodes=2"),
        (
            SRUN | TORCHRUN | {"WORLD_SIZE": "6"},
            2,
            "torchrun has started 6; set trainer.devices=2 trainer.num_nodes=3",
        ),
        ({"WORLD_SIZE": "2"}, 1, "the launcher has started 2; set trainer.devices=2"),
    ],
)
def test_others_are_refused(environment: dict[str, str], devices: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ranks(environment, devices=devices, num_nodes=1)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN, "torchrun has started 2"),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "a"}, "start it with srun"),
    ],
)
def test_train_refuses_before_it_writes(
    environment: dict[str, str], message: str, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train_from(composed(tiny_overrides(toy, "run.name=alone")))
    assert not (toy / "runs" / "alone").exists()


@pytest.mark.long
def test_torchrun_trains_two_ranks(toy: Path) -> None:
    settings = ["run.name=torchrun", "trainer.devices=2", "suite=none", "objective.group_size=1"]
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vlm.cli.train"]
    done = subprocess.run(
        [sys.executable, *words, *tiny_overrides(toy, *settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checkpoint = toy / "runs" / "torchrun" / "checkpoints" / "step_00000008"
    assert json.loads((checkpoint / "config.json").read_text())["resolved"] == {"num_groups": 2}
