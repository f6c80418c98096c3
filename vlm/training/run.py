"""A training run, from validated components to the last checkpoint."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch.loggers import WandbLogger

from vlm.data import TrainSet
from vlm.data.tokenizers import Tokenizer
from vlm.distributed import ControlGroup, Topology
from vlm.errors import ConfigError
from vlm.evaluation import check_parts
from vlm.files import remove_drafts, replacing, writing
from vlm.inference import (
    TOKENIZER,
    Loaded,
    check_buildable,
    read_description,
    read_tokenizer,
)
from vlm.models import ModelSpec, described, try_pretrained
from vlm.training.agreement import (
    check_batch_norm,
    check_best,
    check_decoders,
    check_freeze,
    check_frozen_weights,
    check_held,
    check_sizes,
    check_start_token,
    check_taught,
)
from vlm.training.broken import BrokenSamples
from vlm.training.callbacks import GO_ON, Checkpoint, Evaluate, StepLog, TimedLoader
from vlm.training.changes import check_unchanged, resolved
from vlm.training.checkpoint import EVALUATION, last_whole, load_step
from vlm.training.checks import Watch, keep_for_a_look, warn_of_truncation
from vlm.training.control import Control
from vlm.training.engines import Engine
from vlm.training.init_from import InitFrom
from vlm.training.launch import start_ranks
from vlm.training.module import TrainingModule
from vlm.training.recipe import Run
from vlm.training.watchdog import Watchdog

log = logging.getLogger(__name__)

# The workers of a run that was killed end within moments, and hold the lock until then.
_LOCK_SECONDS = 20


def train(run: Run) -> Path:
    """Train to `trainer.max_steps`, from the last whole checkpoint where there is one to go on from.

    Returns the run's folder.

    Raises:
        StoppedError: a signal ended the run, after a checkpoint.
        VlmError: for whatever the user can change; before the first step where it can be known then.
    """
    run.schedule.check(run.trainer.max_steps)
    check_best(run)
    check_held(run)
    check_taught(run)
    check_decoders(run)
    engine = run.trainer.engine()
    trainer = run.trainer.build(engine, logger=list(run.loggers))
    run.data.check_world_size(trainer.world_size)
    run.data.check_tokenizer(run.tokenizer)
    check_sizes(run)
    check_freeze(run)
    start_ranks(trainer)
    control = ControlGroup()
    device = trainer.strategy.root_device
    control.first_rank_does(lambda: run.trainer.tower_options.check_compiler(device))
    run.objective.setup(Topology.current())
    with _alone_in_folder(run, control):
        _train(run, trainer, engine, control)
    return run.folder


@contextmanager
def _alone_in_folder(run: Run, control: ControlGroup) -> Iterator[None]:
    """Two runs in one folder would delete each other's drafts and mix their rows."""
    path = run.folder.with_name(f".{run.folder.name}.lock")
    lock = FileLock(path, timeout=_LOCK_SECONDS)

    def acquire() -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise ConfigError(
                    f"another process is training in {run.folder}; wait for it, or choose another run.name"
                ) from None

    control.first_rank_does(acquire)
    try:
        yield
    finally:
        lock.release()


def _train(run: Run, trainer: L.Trainer, engine: Engine, control: ControlGroup) -> None:
    start = control.first_rank_does(lambda: _prepare(run))
    data = run.data.open()
    tokenizer = Tokenizer.load(run.folder / TOKENIZER) if run.tokenizer else None
    init = _initial_weights(run, start)
    module = build_module(run, _spec(run, tokenizer, start, init), engine, resume_from=start, init_from=init)
    if control.first_rank_does(lambda: _is_complete(run, start, module.step)):
        log.info("%s has all %d steps of trainer.max_steps", run.folder, run.trainer.max_steps)
        return
    try:
        _fit(run, trainer, module, data, tokenizer, control)
    finally:
        for logger in run.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.experiment.finish()  # else the next run of this process would write into this one


def build_module(
    run: Run,
    spec: ModelSpec,
    engine: Engine,
    *,
    resume_from: Path | None = None,
    init_from: InitFrom | None = None,
) -> TrainingModule:
    """What takes the steps of a run, with a model of `spec`."""
    return TrainingModule(
        spec,
        run.objective,
        engine=engine,
        optimizer=run.optimizer,
        schedule=run.schedule,
        max_steps=run.trainer.max_steps,
        micro_batch_size=run.trainer.micro_batch_size,
        ema_decay=run.trainer.ema_decay,
        ema_warmup=run.trainer.ema_warmup,
        tower_options=run.trainer.tower_options,
        seed=run.seed,
        resume_from=resume_from,
        init_from=init_from,
        resize_positions=run.resize_positions,
        freeze=run.freeze,
    )


def _fit(
    run: Run,
    trainer: L.Trainer,
    module: TrainingModule,
    data: TrainSet,
    tokenizer: Tokenizer | None,
    group: ControlGroup,
) -> None:
    # In `fit` the other ranks would wait for a first one that cannot make its files.
    group.first_rank_does(lambda: _open_loggers(run))
    max_steps = run.trainer.max_steps
    ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    batches = data.loader(tokenizer, start_step=module.step, stop_step=max_steps, **ranks)
    loader = TimedLoader(batches, max_steps - module.step)

    def loaded(module: TrainingModule) -> Loaded:
        return Loaded(module.towers, run.data.preprocess, tokenizer)

    def judged(module: TrainingModule) -> Loaded:
        if module.average is not None and run.evaluation.weights == "ema":
            return Loaded(module.average.model, run.data.preprocess, tokenizer)
        return loaded(module)

    step_log = _step_log(run, loader, data, tokenizer, group, **ranks)
    control = Control(group, every_minutes=run.checkpoint.every_minutes)
    checkpoint = _checkpoint(run, loaded, step_log, control, data)
    watchdog = Watchdog(run.objective, minutes=run.trainer.hang_minutes)
    evaluate = _evaluate(run, judged, step_log, checkpoint, watchdog.progress)
    # The checkpoint comes before the evaluation: a fault in the latter then costs nothing.
    callbacks = [watchdog, step_log, control, checkpoint, *([evaluate] if run.evaluators else [])]
    trainer.callbacks += callbacks  # type: ignore[attr-defined]
    trainer.fit(module, train_dataloaders=loader)


def _step_log(
    run: Run,
    loader: TimedLoader,
    data: TrainSet,
    tokenizer: Tokenizer | None,
    group: ControlGroup,
    *,
    rank: int,
    world_size: int,
) -> StepLog:
    def keep_batch(step: int) -> Path:
        # The batch of a step is a function of the step: nothing had to be kept until now.
        again = data.loader(tokenizer, start_step=step - 1, stop_step=step, rank=rank, world_size=world_size)
        batch = next(iter(again))
        folder = run.folder / "not_finite" / f"step_{step:08d}"
        keep_for_a_look(batch, tokenizer, folder, rank=rank)
        return folder

    watch = Watch(
        chance_losses=run.objective.chance_losses(run.data.global_batch_size),
        warmup_steps=run.schedule.warmup_steps,
        num_workers=run.data.num_workers,
        worker_counts=run.data.worker_counts,
    )
    return StepLog(
        loader,
        BrokenSamples(run.folder, max_share=run.data.max_broken_share),
        watch,
        keep_batch,
        group,
        folder=run.folder,
        every_n_steps=run.trainer.log_every_n_steps,
        global_batch_size=run.data.global_batch_size,
        max_steps=run.trainer.max_steps,
    )


def _checkpoint(
    run: Run,
    loaded: Callable[[TrainingModule], Loaded],
    step_log: StepLog,
    control: Control,
    data: TrainSet,
) -> Checkpoint:
    return Checkpoint(
        run.folder / "checkpoints",
        loaded,
        step_log,
        control,
        every_n_steps=run.checkpoint.every_n_steps,
        max_steps=run.trainer.max_steps,
        keep_last=run.checkpoint.keep_last,
        keep_best=run.checkpoint.keep_best,
        config=resolved(run),
        data=data.fingerprint,
    )


def _evaluate(
    run: Run,
    loaded: Callable[[TrainingModule], Loaded],
    step_log: StepLog,
    checkpoint: Checkpoint,
    progress: Callable[[], None],
) -> Evaluate:
    return Evaluate(
        run.evaluators,
        loaded,
        step_log,
        checkpoint,
        progress,
        every_n_steps=run.evaluation.every_n_steps,
        max_steps=run.trainer.max_steps,
        before=run.evaluation.before,
        batch_size=run.evaluation.batch_size,
        num_workers=run.evaluation.num_workers,
    )


def _open_loggers(run: Run) -> None:
    with writing(run.folder, then=GO_ON):
        for logger in run.loggers:
            getattr(logger, "experiment", None)


def _prepare(run: Run) -> Path | None:
    """Shards, index, tokenizer and `config.json`, made by the first rank for all.

    Returns the checkpoint to resume from, or None for a new run. A resumed run keeps the tokenizer of its
    checkpoint. A preparation that fails leaves the folder as it was.
    """
    start = _starting_point(run)
    if run.make_data is not None:
        run.make_data.make()
    data = run.data.open()
    init = _initial_weights(run, start)
    if start is not None:
        check_unchanged(run, start, data)
        tokenizer = read_tokenizer(start) if run.tokenizer else None
        check_buildable(start)
    else:
        tokenizer = _new_tokenizer(run, data, init)
    run.objective.check_classes(data.num_classes)
    check_parts(run.evaluators, run.model)
    for evaluator in run.evaluators.values():
        evaluator.check()
    spec = _spec(run, tokenizer, start, init)
    model = described(spec)
    run.optimizer.lr_scales(model)
    check_batch_norm(run, model)
    run.trainer.tower_options.check(model)
    if start is None:
        check_frozen_weights(run)
        try_pretrained(spec, resize_positions=run.resize_positions)
    if init is not None:
        init.check(spec, run.data.preprocess)
        log.info("weights of %s, at step 0 with a new optimizer; %s", init.checkpoint, _of_text(run, init))
    with writing(run.folder, then=GO_ON):
        run.folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(run.folder)
        if tokenizer is not None:
            with replacing(run.folder / TOKENIZER) as draft:
                tokenizer.save(draft)
        if start is None or load_step(start) < run.trainer.max_steps:  # else it would not be what was run
            with replacing(run.folder / "config.json") as draft:
                draft.write_text(json.dumps(resolved(run), indent=2, ensure_ascii=False))
    return start


def _new_tokenizer(run: Run, data: TrainSet, init: InitFrom | None) -> Tokenizer | None:
    if run.tokenizer is None:
        return None
    if init is not None and init.has_text:
        tokenizer = init.tokenizer(run.tokenizer.context_length)
    else:
        tokenizer = run.tokenizer.build(data.captions)
    check_start_token(run, tokenizer)
    warn_of_truncation(data, tokenizer)
    return tokenizer


def _of_text(run: Run, init: InitFrom) -> str:
    if run.model.text is None:
        return "of the image tower alone"
    if init.has_text:
        return "its tokenizer too: the key tokenizer is not used"
    return "the text tower is new, as the checkpoint has none"


def _is_complete(run: Run, start: Path | None, step: int) -> bool:
    """Whether nothing is left to do, not even an evaluation that was cut short at the last step."""
    if step == run.trainer.max_steps and run.evaluators:
        return start is not None and (start / EVALUATION).is_file()
    return step >= run.trainer.max_steps


def _starting_point(run: Run) -> Path | None:
    """The checkpoint to resume from, or None for a new run; refuses a folder that holds another run."""
    if run.resume:
        start = last_whole(run.folder)
        log.info("resuming from %s", start or "the start: there is no checkpoint yet")
        if start is not None and run.init_from is not None:
            log.info("going on from %s; init_from=%s is where the run began", start, run.init_from)
        return start
    if run.folder.is_dir() and any(run.folder.iterdir()):
        raise ConfigError(
            f"{run.folder} is not empty; go on with it by run.resume=true, or choose another run.name"
        )
    return None


def _initial_weights(run: Run, start: Path | None) -> InitFrom | None:
    """Where a new run takes its weights from; a resumed one goes on with its own."""
    if run.init_from is None or start is not None:
        return None
    if run.model != run.model.without_pretrained():
        raise ConfigError(
            f"init_from={run.init_from} and model.image.pretrained or model.text.pretrained both say where "
            "weights come from; set pretrained=false"
        )
    return InitFrom(run.init_from, resize_positions=run.resize_positions)


def _spec(run: Run, tokenizer: Tokenizer | None, start: Path | None, init: InitFrom | None) -> ModelSpec:
    """The model with the tokenizer's vocabulary, or the larger one of the weights that it starts with."""
    spec, origin = run.model, init.checkpoint if init else start
    if spec.text is None or tokenizer is None:
        return spec
    before = None if origin is None else read_description(origin).model.text
    if before is not None and spec.text.vocab_size is None:
        spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, vocab_size=before.vocab_size))
    return spec.with_tokenizer(vocab_size=tokenizer.vocab_size, eot_id=tokenizer.eot_id)
