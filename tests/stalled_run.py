"""Toy runs that stop going on in one place each; a program of its own, as a fork wants no threads.

It prints the exit code of each; what a run says is in `<case>.txt`.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from toy_run import composed, tiny_overrides

import vlm.objectives
from vlm.cli.train import train_from
from vlm.models import DualEncoder
from vlm.training import callbacks, module, watchdog

# Above what a step of a busy machine needs, several times.
HANG_MINUTES = 0.2
SLOW_HANG_MINUTES = 0.25
SLOW_BATCH_S = 1.5
SHARED = ["checkpoint.every_n_steps=100", "run.resume=true"]

# What stalls in its third call, and what is set besides. All are called inside of what the watchdog names.
CASES: dict[str, tuple[Any, str, list[str]]] = {
    "data": (torch.utils.data.DataLoader, "__iter__", ["suite=none"]),
    "encoders": (DualEncoder, "encode_image", ["suite=none"]),
    "loss": (vlm.objectives.ClipObjective, "contrast", ["suite=none"]),
    "backward": (module.TrainingModule, "manual_backward", ["suite=none"]),
    "checkpoint": (callbacks, "save", ["suite=none", "checkpoint.every_n_steps=1"]),
    "evaluation": (callbacks, "run_suite", ["evaluation.every_n_steps=1"]),
}


def stalling(function: Callable[..., Any], *, call: int) -> Callable[..., Any]:
    left = call

    def stalls(*args: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            time.sleep(600)
        return function(*args, **named)

    return stalls


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **named: Any) -> Any:
        time.sleep(SLOW_BATCH_S)
        return function(*args, **named)

    return slow


def run(folder: Path, case: str) -> NoReturn:
    code = 1
    try:
        with (folder / f"{case}.txt").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        minutes = HANG_MINUTES
        watchdog._LAST_WORDS_S = 0.0
        if case == "slow":  # batches of a tenth of the time, which take longer than it together
            minutes = SLOW_HANG_MINUTES
            overrides = [*SHARED, "evaluation.batch_size=8", "trainer.max_steps=3"]
            DualEncoder.encode_image = slowed(DualEncoder.encode_image)
        else:
            owner, name, more = CASES[case]
            overrides = [*SHARED, *more]
            first = 1 if case == "data" else 3  # there is one iterator for all batches
            setattr(owner, name, stalling(getattr(owner, name), call=first))
        overrides = [*overrides, f"trainer.hang_minutes={minutes}", f"run.name={case}"]
        train_from(composed(tiny_overrides(folder, *overrides)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(folder: Path, cases: list[str]) -> None:
    codes = {}
    for case in cases:
        child = os.fork()
        if child == 0:
            run(folder, case)
        codes[case] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
