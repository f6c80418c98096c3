"""What happens around the training step: numbers, progress, evaluation, checkpoints."""

import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from vlm.distributed import ControlGroup, Topology, max_over_ranks, take_from_first
from vlm.errors import TrainingError
from vlm.evaluation import Evaluator, run_suite
from vlm.files import writing
from vlm.inference import Embedder, Loaded
from vlm.models import ClassCentres
from vlm.training.broken import BrokenSamples
from vlm.training.centres import save_centres, wait_until_whole
from vlm.training.checkpoint import CheckpointFolder, parts_of, save
from vlm.training.checks import Finite, Watch
from vlm.training.control import Control, stopped
from vlm.training.module import TrainingModule, averaged
from vlm.training.work import Work
from vlm.types import Batch

log = logging.getLogger(__name__)

GO_ON = "make room, then go on with run.resume=true"


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
    to every logger and the bar.

    Args:
        folder: the run's, in which loggers write.
        watch: looks at every row of the log.
        keep_batch: stores this rank's rows of a step's batch for a look, and tells where.
    """

    def __init__(
        self,
        loader: TimedLoader,
        broken: BrokenSamples,
        watch: Watch,
        keep_batch: Callable[[int], Path],
        group: ControlGroup,
        *,
        folder: Path,
        every_n_steps: int,
        global_batch_size: int,
        max_steps: int,
    ) -> None:
        self.loader = loader
        self.broken = broken
        self.watch = watch
        self.keep_batch = keep_batch
        self.group = group
        self.folder = folder
        self.finite = Finite()
        self.every_n_steps = every_n_steps
        self.global_batch_size = global_batch_size
        self.max_steps = max_steps
        self.paused_s = 0.0
        self.work = Work()
        self._mark = (0, 0.0, 0.0, 0.0)
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.work = Work.of(module.spec, module.device)
        self._mark = (module.step, time.perf_counter(), self.loader.waited_s, self.paused_s)
        if trainer.is_global_zero:
            self._bar = _progress_bar(start=module.step, total=self.max_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        self.broken.add(batch, step=module.step)
        self.work.add(batch)
        self.finite.look(module.step, outputs["metrics"]["train/loss"], outputs["metrics"]["train/grad_norm"])
        if self._bar is not None:
            self._bar.update(1)
        if module.step % self.every_n_steps and module.step != self.max_steps:
            return
        metrics = averaged({**outputs["metrics"], **self._rates(module)}, device=module.device)
        peak = torch.tensor(_peak_memory_gib(module.device), device=module.device)
        metrics["memory/peak_gib"] = max_over_ranks(peak).item()
        metrics |= self.broken.metrics(device=module.device)
        self.to_loggers(trainer, metrics, step=module.step)
        if self._bar is not None:
            self._show(module.step, metrics)
            self.watch.look(module.step, metrics)
        self.require_finite()
        self.broken.check()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def to_loggers(self, trainer: L.Trainer, metrics: dict[str, float], *, step: int) -> None:
        """Give metrics to every logger, from the first rank; called on every rank.

        Raises:
            OutputError: a logger cannot write; on every rank, so that none waits for the others.
        """

        def write() -> None:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)

        _first_rank_writes(self.group, self.folder, write)

    def require_finite(self) -> None:
        """Stop where the loss or the gradient of a step so far was not finite; called on every rank.

        Raises:
            TrainingError: naming the step and where its batch is kept.
        """
        step = self.finite.first_bad_step()
        if step is None:
            return
        try:
            kept = f"are in {self.keep_batch(step)}"
        except OSError as error:
            kept = f"cannot be kept for a look: {error}"
        raise TrainingError(
            f"the loss or its gradient is not finite at step {step}; its images, captions and keys "
            f"{kept}. No checkpoint has been written since: look at the batch, then go on with "
            "run.resume=true and, say, a lower optimizer.lr, confirmed by run.accept_changes=[optimizer.lr]"
        ).on_all_ranks()

    def _rates(self, module: TrainingModule) -> dict[str, float]:
        """Speed since the last call, and shares of its time; evaluating and saving do not count."""
        step, split, work = module.step, module.clock.read(), self.work.read()
        now, waited, paused = time.perf_counter(), self.loader.waited_s, self.paused_s
        first, start, waited_before, paused_before = self._mark
        self._mark = (step, now, waited, paused)
        seconds = max(1e-9, now - start - (paused - paused_before))
        return {
            "time/samples_per_s": (step - first) * self.global_batch_size / seconds,
            "time/data_wait_share": (waited - waited_before) / seconds,
            **{f"time/{part}_share": spent / seconds for part, spent in split.items()},
            **{f"time/{name}": value / seconds for name, value in work.items()},
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


def _first_rank_writes(group: ControlGroup, folder: Path, work: Callable[[], None]) -> None:
    def guarded() -> None:
        with writing(folder, then=GO_ON):
            work()

    group.first_rank_does(guarded)


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
        if not self.is_due(module.step):
            return
        start = time.perf_counter()
        self.act(trainer, module)
        self.step_log.paused_s += time.perf_counter() - start

    def is_due(self, step: int) -> bool:
        """Whether to act after this step; the same on every rank."""
        return step % self.every_n_steps == 0 or step == self.max_steps

    def act(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """What to do; called on every rank."""
        raise NotImplementedError


class Checkpoint(Pausing):
    """Writes `<folder>/step_<step>` from the first rank, when it is due by steps, by time or after a signal.

    The last `keep_last` are kept, and the best by the metric `keep_best`, which `best.json` names.
    """

    def __init__(
        self,
        folder: Path,
        loaded: Callable[[TrainingModule], Loaded],
        step_log: StepLog,
        control: Control,
        *,
        every_n_steps: int,
        max_steps: int,
        keep_last: int | None,
        keep_best: str | None,
        config: Mapping[str, Any],
        data: Mapping[str, Any],
    ) -> None:
        super().__init__(step_log, every_n_steps=every_n_steps, max_steps=max_steps)
        self.folder = CheckpointFolder(folder, keep_last=keep_last, keep_best=keep_best)
        self.loaded = loaded
        self.control = control
        self.config = config
        self.data = data
        self._written = 0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self._written = module.step

    def is_due(self, step: int) -> bool:
        """By steps, by the clock, or since a signal asks for the end."""
        return super().is_due(step) or self.control.time_is_up or self.control.stop_signal is not None

    def act(self, trainer: L.Trainer, module: TrainingModule) -> None:
        self._write(trainer, module)
        if self.control.stop_signal is not None:
            raise stopped(self.control.stop_signal, step=module.step, run=self.folder.path.parent)

    def end_if_asked(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Heed a signal during an evaluation; called on every rank.

        Raises:
            StoppedError: there was one; this step has a checkpoint then.
        """
        if self.control.wants_the_end():
            self.act(trainer, module)

    def evaluated(self, trainer: L.Trainer, module: TrainingModule, metrics: Mapping[str, float]) -> None:
        """Keep this step's checkpoint if it is the best so far, and the metrics with it if there is one.

        Args:
            metrics: of this step, the same on every rank.
        """
        group, step = self.control.group, module.step
        best = group.first_rank_does(lambda: self.folder.improves(metrics))
        if best:
            self._write(trainer, module)

        def write() -> None:
            if best:
                self.folder.set_best(step, metrics)
            self.folder.note_evaluation(step, metrics)

        _first_rank_writes(group, self.folder.path, write)

    def lacks_evaluation(self, step: int) -> bool:
        """Whether there is a checkpoint of this step that was not evaluated to the end; on every rank."""
        return self.control.group.first_rank_does(lambda: not self.folder.is_evaluated(step))

    def _write(self, trainer: L.Trainer, module: TrainingModule) -> None:
        if self._written == module.step:
            return
        self._written = module.step
        self.control.saved()
        self.step_log.require_finite()
        # Gathered by all ranks, kept by the first.
        weights, average, moments = module.weights(), module.average_weights(), module.moments()

        place = self.folder.place(module.step)
        parts = self._write_centres(module.objective.centres, parts_of(place))

        def write() -> None:
            save(
                place,
                self.loaded(module),
                weights=weights,
                average=average,
                moments=moments,
                parts=parts,
                step=module.step,
                config=self.config,
                seed=module.seed,
                data=self.data,
            )
            self.folder.prune(module.step)

        _first_rank_writes(self.control.group, self.folder.path, write)

    def _write_centres(self, centres: ClassCentres | None, folder: Path) -> Path | None:
        """Each rank its own; None where there are none."""
        if centres is None:
            return None
        group = self.control.group
        group.first_rank_does(lambda: shutil.rmtree(folder, ignore_errors=True))  # of ranks that were killed
        group.each_rank_does(lambda: save_centres(folder, centres))
        group.first_rank_does(lambda: wait_until_whole(folder, centres.num_classes))
        return folder


class Evaluate(Pausing):
    """Runs the suite on all ranks and logs `eval/<set>/<metric>`.

    A signal ends it between two batches. A run that goes on from a checkpoint whose evaluation was due, and
    was cut short by a signal or a kill, begins with that evaluation.

    Args:
        progress: is called after each batch.
        before: whether a new run begins with an evaluation too, logged as that of step 0.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        loaded: Callable[[TrainingModule], Loaded],
        step_log: StepLog,
        checkpoint: Checkpoint,
        progress: Callable[[], None],
        *,
        every_n_steps: int,
        max_steps: int,
        before: bool,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(step_log, every_n_steps=every_n_steps, max_steps=max_steps)
        self.before = before
        self.evaluators = evaluators
        self.loaded = loaded
        self.checkpoint = checkpoint
        self.progress = progress
        self.batch_size = batch_size
        self.num_workers = num_workers

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        now = self._due_at_start(module)
        if now is not None:
            if trainer.is_global_zero:
                log.info("evaluating %s", now)
            with self.checkpoint.control.listening():
                self.act(trainer, module)

    def _due_at_start(self, module: TrainingModule) -> str | None:
        """What is evaluated before any training, in words; the same on every rank."""
        if module.resume_from is None:
            return "before the first step" if self.before else None
        if self.is_due(module.step) and self.checkpoint.lacks_evaluation(module.step):
            return f"step {module.step}, which was not done to its end"
        return None

    def act(self, trainer: L.Trainer, module: TrainingModule) -> None:
        def between_batches() -> None:
            self.progress()
            self.checkpoint.end_if_asked(trainer, module)

        # Running statistics are of each rank's own rows; a checkpoint has those of the first.
        take_from_first(value for value in module.towers.buffers() if value.is_floating_point())
        embedder = Embedder(
            self.loaded(module),
            Topology.current(),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            between_batches=between_batches,
        )
        results = run_suite(self.evaluators, embedder)
        metrics = {f"eval/{name}/{k}": v for name, r in results.items() for k, v in r.metrics.items()}
        self.step_log.to_loggers(trainer, metrics, step=module.step)
        if module.step > 0:  # before the first there is no checkpoint, and so none to be the best
            self.checkpoint.evaluated(trainer, module, metrics)
