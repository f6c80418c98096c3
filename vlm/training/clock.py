"""How long each part of a training step takes, without waiting for the device."""

import time

import torch


class StepClock:
    """Adds up the seconds of the parts of steps: between events on a GPU's stream, else of the process."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._last: float | torch.cuda.Event = 0.0
        self._seconds: dict[str, float] = {}
        self._intervals: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, device: torch.device) -> None:
        """A step begins on this device."""
        self.device = device
        self._last = self._now()

    def mark(self, part: str) -> None:
        """What was done since the last mark, or the start, belongs to this part."""
        now, last = self._now(), self._last
        self._last = now
        if isinstance(now, float) and isinstance(last, float):
            self._seconds[part] = self._seconds.get(part, 0.0) + now - last
        elif isinstance(now, torch.cuda.Event) and isinstance(last, torch.cuda.Event):
            self._intervals.append((part, last, now))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading; waits for the device."""
        if self._intervals:
            self._intervals[-1][2].synchronize()
        for part, first, last in self._intervals:
            self._seconds[part] = self._seconds.get(part, 0.0) + first.elapsed_time(last) / 1000
        found, self._seconds, self._intervals = self._seconds, {}, []
        return found

    def _now(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
