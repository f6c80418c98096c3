"""A toy run that is killed again and again; a program of its own, as a fork wants a process without threads.

It imports once what takes seconds to import, and forks for every attempt. It prints what each kill met.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch.utils.tensorboard  # noqa: F401
from toy_run import composed, tiny_overrides

import vlm.training  # noqa: F401
from vlm.cli.train import train_from

STEPS = 200
SHARED = [
    f"trainer.max_steps={STEPS}",
    "data.num_workers=1",
    "checkpoint.every_n_steps=2",
    "checkpoint.keep_best=eval/held_out_en/acc1",
    "evaluation.every_n_steps=20",
    "run.name=run",
    "run.resume=true",
]


@dataclass(frozen=True)
class Attempt:
    """A child that trains, and what can be seen of it from outside."""

    folder: Path
    child: int
    began_ns: int

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "run"

    def drafts(self) -> set[str]:
        """Checkpoints that this child is writing, or was when it died: a whole one has another name."""
        found = (self.run / "checkpoints").glob(".step_*.tmp")
        return {draft.name for draft in found if _changed(draft) >= self.began_ns}

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            ended = os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert ended is None, (self.folder / "log.txt").read_text()
            time.sleep(0.0005)

    def wait_for_a_row(self) -> None:
        self.wait_until(lambda: _changed(self.run / "metrics.csv") >= self.began_ns)

    def wait_for(self, name: str) -> None:
        self.wait_until((self.folder / name).exists)

    def wait_for_a_checkpoint(self, number: int) -> None:
        """Until it has begun to write its n-th."""
        seen: set[str] = set()

        def is_writing() -> bool:
            seen.update(self.drafts())
            return len(seen) >= number

        self.wait_until(is_writing)

    def kill(self) -> dict[str, object]:
        """End the child and its loader workers; what was there then."""
        os.killpg(self.child, signal.SIGKILL)
        _, status = os.waitpid(self.child, 0)
        metrics = self.run / "metrics.csv"
        return {
            "killed": os.WIFSIGNALED(status),
            "making_data": (self.folder / "data" / ".toy.partial").is_dir(),
            "writing": bool(self.drafts()),
            "checkpoints": len(list(self.run.glob("checkpoints/step_*"))),
            "whole_lines": not metrics.exists() or metrics.read_bytes().endswith(b"\n"),
        }


def start(folder: Path) -> Attempt:
    """Go on in `folder`: always with the very same words."""
    began = time.time_ns()
    child = os.fork()
    if child == 0:
        _train(folder)
    with suppress(PermissionError):  # the child was faster, as far as to another program
        os.setpgid(child, child)
    return Attempt(folder, child, began)


def _train(folder: Path) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        with (folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        train_from(composed(tiny_overrides(folder, *SHARED)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0


def whole(folder: Path) -> float:
    """Train to the end. Returns the seconds to the first row of metrics."""
    folder.mkdir()
    attempt = start(folder)
    attempt.wait_for_a_row()
    seconds = (time.time_ns() - attempt.began_ns) / 1e9
    finish(attempt)
    return seconds


def finish(attempt: Attempt) -> None:
    assert os.waitpid(attempt.child, 0)[1] == 0, (attempt.folder / "log.txt").read_text()


def main(folder: Path, kills: int) -> None:
    """Kill while it makes its data; as it has prepared; by the clock; among its steps; in a checkpoint."""
    first_row_s = whole(folder / "whole")
    cut = folder / "cut"
    cut.mkdir()
    rng = random.Random(0)
    for number in range(kills):
        attempt = start(cut)
        if number == 0:
            attempt.wait_for("data/.toy.partial")
        elif number == 1:
            attempt.wait_for("runs/run/tokenizer.json")
        elif number % 3 == 0:
            time.sleep(rng.uniform(0, 1.2 * first_row_s))
        elif number % 3 == 1:
            attempt.wait_for_a_row()
            time.sleep(rng.uniform(0, 0.2))
        else:
            attempt.wait_for_a_checkpoint(rng.randint(1, 3))
            time.sleep(rng.uniform(0, 0.005))
        print(json.dumps(attempt.kill()), flush=True)
    finish(start(cut))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
