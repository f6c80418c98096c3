"""Trains under a SLURM of two nodes: undisturbed, preempted, with a rank killed, with a rank that hangs.

    python run.py FOLDER LOW HIGH

from the folder and the Python environment of the project. LOW and HIGH are partitions; jobs in HIGH preempt
and requeue those in LOW. Both nodes are this machine, so that a rank can be found among its processes.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STEPS = 1000
SIZE = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=30"]


class Lab:
    """Jobs of one run each, and what happens to them, by the clock."""

    def __init__(self, folder: Path, low: str, high: str) -> None:
        self.folder = folder
        self.low = low
        self.high = high
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def submit(self, name: str, *more: str) -> str:
        """Returns the id of the job."""
        self.began = time.monotonic()
        overrides = [
            "experiment=toy",
            *(f"paths.{what}={self.folder}/{what}" for what in ("data", "runs")),
            *("make_data.num_train=400", "make_data.num_test=24", "make_data.num_held_out=24"),
            *("make_data.num_choice=24", "make_data.image_size=32", "make_data.seed=0"),
            *("model.embed_dim=16", "++model.image.name=resnet10t", "++model.image.image_size=32"),
            *("++model.image.options.channels=[8,8,16,16]", "++model.image.options.stem_width=8"),
            *("++model.image.options.norm_layer=groupnorm1", "model.text.width=24", "model.text.layers=1"),
            *("model.text.heads=3", "tokenizer.vocab_size=400", "data.global_batch_size=64"),
            *("data.streams_per_group=4", "data.stream_groups=2", "data.num_workers=1"),
            *(f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"),
            *("schedule.warmup_steps=20", "checkpoint.every_n_steps=50", "checkpoint.keep_last=null"),
            *("evaluation.every_n_steps=500", f"run.name={name}", *more),
        ]
        log = f"--output={self.folder}/{name}.log"
        words = [
            "sbatch",
            "--parsable",
            f"--partition={self.low}",
            *SIZE,
            log,
            "slurm/train.sbatch",
            *overrides,
        ]
        job = tell(words).strip()
        self.say(f"{name}: submitted as job {job}")
        return job

    def wait(self, what: str, condition: Callable[[], bool], *, limit_s: float = 400) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                sys.exit(f"waited {limit_s} s for: {what}")
            time.sleep(0.1)
        self.say(what)

    def wait_for_step(self, name: str, step: int) -> None:
        self.wait(f"step {step} is logged", lambda: len(self.rows(name)) >= step)

    def wait_for_state(self, job: str, *states: str) -> None:
        self.wait(f"job {job}: {' or '.join(states)}", lambda: state_of(job) in states)

    def finish(self, job: str, name: str) -> None:
        self.wait_for_state(job, "COMPLETED", "FAILED")
        self.say(f"{name}: {state_of(job)}, restarts {show(job, 'Restarts')}")

    def rows(self, name: str) -> list[dict[str, str]]:
        path = self.folder / "runs" / name / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["train/loss"]]

    def checkpoints(self, name: str) -> list[str]:
        found = (self.folder / "runs" / name / "checkpoints").glob("step_*")
        return sorted(path.name for path in found)

    def compare(self, name: str) -> None:
        """With the undisturbed run, string by string."""
        columns = [c for c in self.rows("whole")[0] if c.startswith(("step", "train/"))]
        whole, other = ([[row[c] for c in columns] for row in self.rows(n)] for n in ("whole", name))
        same = sum(a == b for a, b in zip(whole, other, strict=True))
        log = (self.folder / f"{name}.log").read_text()
        resumed = [line.rpartition("/")[2] for line in log.splitlines() if "resuming from /" in line]
        self.say(f"{name}: {same} of {len(whole)} rows are equal, resumed from {resumed}")


def tell(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def sbatch(*words: str) -> str:
    """Returns the id of the job."""
    return tell(["sbatch", "--parsable", *words]).strip()


def show(job: str, field: str) -> str:
    shown = tell(["scontrol", "show", "job", job]).split()
    return next(word.partition("=")[2] for word in shown if word.startswith(f"{field}="))


def state_of(job: str) -> str:
    return show(job, "JobState")


def processes_of(rank: int, job: str) -> Iterator[int]:
    """The training process of a rank and its loader workers, oldest first."""
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        wanted = {f"SLURM_PROCID={rank}".encode(), f"SLURM_JOB_ID={job}".encode(), b"SLURM_STEP_ID=0"}
        if wanted <= set(words) and b"/train" in command:
            yield int(path.name)


def whole(lab: Lab) -> None:
    job = lab.submit("whole")
    lab.finish(job, "whole")


def preempted(lab: Lab) -> None:
    job = lab.submit("preempted")
    lab.wait_for_step("preempted", 330)
    other = tell(
        [
            "sbatch",
            "--parsable",
            f"--partition={lab.high}",
            "--nodes=2",
            "--output=/dev/null",
            "--wrap=sleep 10",
        ]
    )
    lab.say(f"job {other} of higher priority submitted")
    lab.wait_for_state(job, "PENDING")
    lab.say(f"checkpoints: {lab.checkpoints('preempted')[-2:]}")
    lab.wait_for_state(other, "RUNNING")
    lab.wait_for_state(other, "COMPLETED")
    lab.wait_for_state(job, "RUNNING")
    lab.finish(job, "preempted")
    lab.compare("preempted")


def killed(lab: Lab) -> None:
    job = lab.submit("killed")
    lab.wait_for_step("killed", 330)
    os.kill(next(processes_of(1, job)), signal.SIGKILL)
    before = lab.checkpoints("killed")
    lab.say(f"rank 1 killed; {len(before)} checkpoints, the last {before[-1]}")
    lab.wait_for_state(job, "PENDING")
    lab.say(f"all {len(before)} checkpoints are there: {set(before) <= set(lab.checkpoints('killed'))}")
    lab.wait_for_state(job, "RUNNING")
    lab.finish(job, "killed")
    lab.compare("killed")


def unnoticed(lab: Lab) -> None:
    """Rank 0 stands still, as one that waits in NCCL would, and does not see the connection closed."""
    job = lab.submit("unnoticed")
    lab.wait_for_step("unnoticed", 130)
    os.kill(next(processes_of(0, job)), signal.SIGSTOP)
    os.kill(next(processes_of(1, job)), signal.SIGKILL)
    lab.say("rank 0 stopped, rank 1 killed")
    lab.wait_for_state(job, "PENDING")
    tell(["scancel", job])


def hung(lab: Lab) -> None:
    job = lab.submit("hung", "trainer.hang_minutes=0.25")
    lab.wait_for_step("hung", 330)
    os.kill(list(processes_of(1, job))[-1], signal.SIGSTOP)
    lab.say("the loader worker of rank 1 is stopped")
    lab.wait_for_state(job, "PENDING")
    lab.wait_for_state(job, "RUNNING")
    lab.finish(job, "hung")
    lab.compare("hung")


def main() -> None:
    folder, low, high = sys.argv[1:4]
    lab = Lab(Path(folder).resolve(), low, high)
    for part in (whole, preempted, killed, unnoticed, hung):
        if sys.argv[4:] in ([], [part.__name__]):
            part(lab)


if __name__ == "__main__":
    main()
