"""A run that hangs says where, and ends, so that it does not hold its machines for nothing."""

import faulthandler
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import lightning as L

from vlm.errors import HangError
from vlm.objectives import Objective
from vlm.training.callbacks import Checkpoint, Evaluate, StepLog, TimedLoader
from vlm.training.control import Control
from vlm.training.module import TrainingModule

_PHASES: list[tuple[Callable[..., Any], str]] = [
    (TimedLoader.__iter__, "data: the next batch"),
    (Checkpoint._write, "checkpoint: the first rank writes, the others wait for it"),
    (Evaluate.act, "evaluation"),
    (StepLog.on_train_batch_end, "log: means over all ranks"),
    (Control.on_train_batch_end, "signals: all ranks tell of theirs"),
    (TrainingModule._check_first, "first batch: all ranks compare theirs"),
    (TrainingModule._backward, "backward: gradients are averaged over all ranks"),
    (TrainingModule.training_step, "step: optimizer, or the wait for the device"),
]
"""What the process is in the middle of, by the function of the main thread; the first that is found."""

# Others report too before they are met by closed connections: no two have finished the same step at one time.
_LAST_WORDS_S = 5.0


class Watchdog(L.Callback):
    """Ends this process with `HangError.exit_code` if no step, and no batch of an evaluation, is finished.

    It is a thread, as the main one is stuck then. It tells the rank, the step and what is waited for, and
    prints the stacks of all threads. The other ranks do the same at about the same time: the one with another
    answer is the one to look at.

    Args:
        minutes: without progress; None: there is no thread.
    """

    def __init__(self, objective: Objective, *, minutes: int | float | None) -> None:
        self._limit_s = None if minutes is None else 60.0 * minutes
        self._phases = [
            *((_code(function), phase) for function, phase in _PHASES[:-1]),
            (_code(type(objective).encode), "encoders"),
            (_code(type(objective).loss), "loss: features of all ranks"),
            *((_code(function), phase) for function, phase in _PHASES[-1:]),
        ]
        self._rank = "this process"
        self._step = 0
        self._seen = 0.0
        self._stop = threading.Event()

    def progress(self) -> None:
        """Something is finished: the time counts from here."""
        self._seen = time.monotonic()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        if trainer.world_size > 1:
            self._rank = f"rank {trainer.global_rank} of {trainer.world_size}"
        self._step = module.step
        self.progress()
        if self._limit_s is not None:
            threading.Thread(target=self._watch, args=(self._limit_s,), daemon=True).start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self._step = module.step
        self.progress()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop.set()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._stop.set()

    def _watch(self, limit_s: float) -> None:
        while (left := self._seen + limit_s - time.monotonic()) > 0:
            if self._stop.wait(left):
                return
        try:
            sys.stderr.write(f"{self._report(_frames_of_main_thread(), limit_s)}\n")
            faulthandler.dump_traceback(file=2, all_threads=True)
            time.sleep(_LAST_WORDS_S)
        finally:
            os._exit(HangError.exit_code)  # sys.exit would end this thread alone

    def _report(self, frames: list[FrameType], limit_s: float) -> str:
        codes = [frame.f_code for frame in frames]
        phase = next((phase for code, phase in self._phases if code in codes), "between two steps")
        own = next((f for f in frames if f.f_globals.get("__name__", "").startswith("vlm.")), frames[0])
        place = f"{own.f_globals['__name__']}, line {own.f_lineno}, in {own.f_code.co_qualname}"
        return (
            f"HangError: {self._rank}: nothing was finished for {limit_s / 60:g} min "
            f"(trainer.hang_minutes) since step {self._step}. Waiting in {phase} ({place}). "
            f"Exit code {HangError.exit_code}; go on with run.resume=true"
        )


def _code(function: Callable[..., Any]) -> CodeType:
    code: CodeType = inspect.unwrap(function).__code__
    return code


def _frames_of_main_thread() -> list[FrameType]:
    """The innermost first."""

    def outwards(frame: FrameType | None) -> Iterator[FrameType]:
        while frame is not None:
            yield frame
            frame = frame.f_back

    return list(outwards(sys._current_frames()[threading.main_thread().ident or 0]))
