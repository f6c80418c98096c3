"""What ends a run early or asks for a checkpoint now, agreed on by all ranks."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from vlm.distributed import ControlGroup
from vlm.errors import StoppedError

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Each saves a checkpoint and ends the run; SLURM sends the first two, Ctrl-C the last."""


class Control(L.Callback):
    """Tells whether a checkpoint is due by the clock, and whether a signal wants the end.

    A signal to one rank ends all of them after the same step, or after the same batch of an evaluation. The
    first asks; a second SIGINT ends at once.

    Args:
        every_minutes: time between checkpoints; None leaves them to the steps.
    """

    def __init__(self, group: ControlGroup, *, every_minutes: int | float | None) -> None:
        self.group = group
        self.every_s = None if every_minutes is None else 60 * every_minutes
        self.time_is_up = False
        self.stop_signal: signal.Signals | None = None
        self._saved_at = 0.0
        self._received = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()
        # Not earlier: Lightning installs its own at the start of fit, and puts back older ones at its end.
        self._listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        late = self.every_s is not None and time.monotonic() - self._saved_at >= self.every_s
        time_is_up, received = self.group.agree([int(late), self._received])
        # Ranks learn of it a step later, and have asked once more meanwhile.
        self.time_is_up = bool(time_is_up) and not self.time_is_up
        self.stop_signal = signal.Signals(received) if received else None

    def wants_the_end(self) -> bool:
        """Whether a signal has reached any rank; between two batches of an evaluation, on every rank.

        The same everywhere: what one rank has received counts from the next call on.
        """
        _, received = self.group.agree([0, self._received])
        self.stop_signal = signal.Signals(received) if received else None
        return received != 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed signals before the training has begun."""
        self._listen()
        try:
            yield
        finally:
            self._restore()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def saved(self) -> None:
        """Start the clock anew."""
        self._saved_at = time.monotonic()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        log.warning("%s: a checkpoint, then the end", signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _listen(self) -> None:
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def stopped(by: signal.Signals, *, step: int, run: Path) -> StoppedError:
    """The error that ends a run after a signal."""
    error = StoppedError(f"{by.name}: {run} stopped after step {step}; go on with run.resume=true")
    if by is signal.SIGINT:
        error.exit_code = 130  # what shells expect of Ctrl-C
    return error
