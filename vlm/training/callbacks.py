"""What happens around the training step: numbers, progress, evaluation, checkpoints."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from vlm.distributed import Topology, max_over_ranks
from vlm.evaluation import Evaluator, run_suite
from vlm.inference import Embedder, Loaded
from vlm.training.broken import BrokenSamples
from vlm.training.checkpoint import save
from vlm.training.module import TrainingModule, averaged
from vlm.types import Batch

log = logging.getLogger(__name__)


class TimedLoader:
    """A loader that adds up how long its consumer waited for it.

    Args:
        num_batches: how many batches are left of the run.
    """

    def __init__(self, loader: Iterable[Batch], num_batches: int) -> None:
        self.loader = loader
        self.num_batches = num_batches
        self.waited_s = 0.0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        for _ in range(self.num_batches):
            start = time.perf_counter()
            batch = next(batches)
            self.waited_s += time.perf_counter() - start
            yield batch


class StepLog(L.Callback):
    """Every `every_n_steps` steps, losses and rates (means over ranks) and peak memory (of the fullest rank)
    to every logger and the bar."""

    def __init__(
        self,
        loader: TimedLoader,
        broken: BrokenSamples,
        *,
        every_n_steps: int,
        global_batch_size: int,
        max_steps: int,
    ) -> None:
        self.loader = loader
        self.broken = broken
        self.every_n_steps = every_n_steps
        self.global_batch_size = global_batch_size
        self.max_steps = max_steps
        self.paused_s = 0.0
        self._mark = (0, 0.0, 0.0, 0.0)
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self._mark = (module.step, time.perf_counter(), self.loader.waited_s, self.paused_s)
        if trainer.is_global_zero:
            self._bar = _progress_bar(start=module.step, total=self.max_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self.broken.add(batch, step=module.step)
        if self._bar is not None:
            self._bar.update(1)
        if module.step % self.every_n_steps and module.step != self.max_steps:
            return
        metrics = averaged({**outputs["metrics"], **self._rates(module.step)}, device=module.device)
        peak = torch.tensor(_peak_memory_gib(module.device), device=module.device)
        metrics["memory/peak_gib"] = max_over_ranks(peak).item()
        metrics |= self.broken.metrics(device=module.device)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=module.step)
        if self._bar is not None:
            self._show(module.step, metrics)
        self.broken.check()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def _rates(self, step: int) -> dict[str, float]:
        """Speed since the last call; time spent evaluating and saving does not count."""
        now, waited, paused = time.perf_counter(), self.loader.waited_s, self.paused_s
        first, start, waited_before, paused_before = self._mark
        self._mark = (step, now, waited, paused)
        seconds = max(1e-9, now - start - (paused - paused_before))
        return {
            "time/samples_per_s": (step - first) * self.global_batch_size / seconds,
            "time/data_wait_share": (waited - waited_before) / seconds,
        }

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        text = (
            f"loss {metrics['train/loss']:.3f}, {metrics['time/samples_per_s']:.0f} samples/s, "
            f"data wait {metrics['time/data_wait_share']:.0%}"
        )
        self._bar.set_postfix_str(text, refresh=False)
        if self._bar.disable:  # no terminal: a line now and then
            samples_left = (self.max_steps - step) * self.global_batch_size
            left = tqdm.format_interval(samples_left / metrics["time/samples_per_s"])
            log.info("step %d/%d: %s, %s left", step, self.max_steps, text, left)


def _progress_bar(*, start: int, total: int) -> Any:
    layout = (
        "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left{postfix}]"
    )
    hidden = not sys.stderr.isatty()
    return tqdm(
        desc="train", initial=start, total=total, bar_format=layout, disable=hidden, dynamic_ncols=True
    )


def _peak_memory_gib(device: torch.device) -> float:
    """Peak of this process: on its GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB


class Pausing(L.Callback):
    """Does something every `every_n_steps` steps and at the end, off the clock of `StepLog`."""

    def __init__(self, step_log: StepLog, *, every_n_steps: int, max_steps: int) -> None:
        self.step_log = step_log
        self.every_n_steps = every_n_steps
        self.max_steps = max_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if module.step % self.every_n_steps and module.step != self.max_steps:
            return
        start = time.perf_counter()
        self.act(trainer, module)
        self.step_log.paused_s += time.perf_counter() - start

    def act(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """What to do; called on every rank."""
        raise NotImplementedError


class Evaluate(Pausing):
    """Runs the suite on all ranks and logs `eval/<set>/<metric>`."""

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        loaded: Callable[[TrainingModule], Loaded],
        step_log: StepLog,
        *,
        every_n_steps: int,
        max_steps: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(step_log, every_n_steps=every_n_steps, max_steps=max_steps)
        self.evaluators = evaluators
        self.loaded = loaded
        self.batch_size = batch_size
        self.num_workers = num_workers

    def act(self, trainer: L.Trainer, module: TrainingModule) -> None:
        embedder = Embedder(
            self.loaded(module), Topology.current(), batch_size=self.batch_size, num_workers=self.num_workers
        )
        results = run_suite(self.evaluators, embedder)
        metrics = {f"eval/{name}/{k}": v for name, r in results.items() for k, v in r.metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=module.step)


class Checkpoint(Pausing):
    """Writes `<folder>/step_<step>` from the first rank."""

    def __init__(
        self,
        folder: Path,
        loaded: Callable[[TrainingModule], Loaded],
        step_log: StepLog,
        *,
        every_n_steps: int,
        max_steps: int,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__(step_log, every_n_steps=every_n_steps, max_steps=max_steps)
        self.folder = folder
        self.loaded = loaded
        self.config = config

    def act(self, trainer: L.Trainer, module: TrainingModule) -> None:
        if not trainer.is_global_zero:
            return
        save(
            self.folder / f"step_{module.step:08d}",
            self.loaded(module),
            trainer.optimizers[0],
            step=module.step,
            config=self.config,
        )
