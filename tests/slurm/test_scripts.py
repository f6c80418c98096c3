"""What the batch scripts do, with stand-ins for SLURM's commands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vlm.errors import OF_ONE_RANK

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_CPUS_PER_TASK": "6",
}
STAND_IN = '#!/bin/bash\nprintf "%s\\n" "$@" >"{folder}/$(basename "$0").txt"\nexit {code}\n'


def submit(folder: Path, script: str, *words: str, code: int = 0, **environment: str) -> int:
    """Run a script with an srun that ends with `code`; `called` tells what was called. Returns its code."""
    (folder / "bin").mkdir()
    for name, its_code in (("srun", code), ("scontrol", 0)):
        path = folder / "bin" / name
        path.write_text(STAND_IN.format(folder=folder, code=its_code))
        path.chmod(0o755)
    return subprocess.run(
        ["bash", ROOT / "slurm" / script, *words],
        cwd=ROOT,
        env={"PATH": f"{folder}/bin:{os.environ['PATH']}", **JOB, **environment},
        capture_output=True,
        check=False,
    ).returncode


def called(folder: Path, command: str) -> list[str] | None:
    path = folder / f"{command}.txt"
    return path.read_text().splitlines() if path.exists() else None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_is_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_there_are_all() -> None:
    assert [path.stem for path in SCRIPTS] == ["evaluate", "evaluate_array", "sweep", "train"]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (126, 0, False),
        (127, 0, False),
        (OF_ONE_RANK, 0, False),
        (75, 0, True),
        (75, 1000, True),
        (138, 1000, True),
        (143, 1000, True),
        (70, 2, True),
        (70, 3, False),
        (124, 2, True),
        (137, 2, True),
        (137, 3, False),
    ],
)
def test_a_job_is_requeued_where_that_may_help(
    tmp_path: Path, code: int, restarts: int, requeued: bool
) -> None:
    found = submit(tmp_path, "train.sbatch", code=code, SLURM_RESTART_COUNT=str(restarts), MAX_RESTARTS="3")
    assert called(tmp_path, "scontrol") == (["requeue", "77"] if requeued else None)
    assert requeued or found == code


def test_training_has_the_ranks_of_the_job_and_goes_on(tmp_path: Path) -> None:
    submit(tmp_path, "train.sbatch", "run.name=a b", "data.train.shards=x/{00..41}.tar")
    words = called(tmp_path, "srun")
    assert words is not None
    assert words[words.index("train") :] == [
        "train",
        "run.name=a b",
        "data.train.shards=x/{00..41}.tar",
        "run.resume=true",
        "trainer.num_nodes=2",
        "trainer.devices=8",
    ]


def test_a_task_of_an_array_requeues_itself_alone(tmp_path: Path) -> None:
    submit(tmp_path, "train.sbatch", code=75, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="4")
    assert called(tmp_path, "scontrol") == ["requeue", "70_4"]


@pytest.mark.parametrize(("task", "line"), [("1", ["optimizer.lr=1e-3"]), ("2", ["run.name=b", "seed=2"])])
def test_a_sweep_takes_its_line_after_what_is_common(tmp_path: Path, task: str, line: list[str]) -> None:
    (tmp_path / "rates.txt").write_text("optimizer.lr=1e-3\nrun.name=b  seed=2")
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": task}
    submit(tmp_path, "sweep.sbatch", f"{tmp_path}/rates.txt", "experiment=toy", **array)
    words = called(tmp_path, "srun")
    assert words is not None
    expected = ["train", f"run.name=rates_{task}", "experiment=toy", *line, "run.resume=true"]
    assert words[words.index("train") : -2] == expected


def test_a_sweep_without_such_a_line_fails(tmp_path: Path) -> None:
    (tmp_path / "rates.txt").write_text("optimizer.lr=1e-3\n")
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}
    assert submit(tmp_path, "sweep.sbatch", f"{tmp_path}/rates.txt", **array) == 1
    assert called(tmp_path, "srun") is None


def test_an_evaluation_ends_with_the_code_of_its_ranks(tmp_path: Path) -> None:
    assert submit(tmp_path, "evaluate.sbatch", "run=runs/toy", code=9) == 9
    words = called(tmp_path, "srun")
    assert words is not None
    assert words[-3:] == ["vlm", "evaluate", "run=runs/toy"]
