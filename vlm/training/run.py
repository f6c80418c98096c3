"""A training run, from validated components to the last checkpoint."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import nn

from vlm.data import TrainData, TrainSet
from vlm.data.tokenizers import Tokenizer, TokenizerRecipe
from vlm.distributed import ControlGroup, Topology
from vlm.errors import CheckpointError, ConfigError
from vlm.evaluation import Evaluator
from vlm.files import remove_drafts, replacing, writing
from vlm.inference import (
    CONFIG,
    TOKENIZER,
    Loaded,
    check_buildable,
    read_config,
    read_description,
    read_tokenizer,
)
from vlm.models import ModelSpec, described, try_pretrained
from vlm.objectives import Objective
from vlm.training.broken import BrokenSamples
from vlm.training.callbacks import GO_ON, Checkpoint, Evaluate, StepLog, TimedLoader
from vlm.training.checkpoint import EVALUATION, last_whole, load_step
from vlm.training.checks import Watch, keep_for_a_look, warn_of_truncation
from vlm.training.control import Control
from vlm.training.engines import AVERAGE, Engine, Strategy, build_engine, check_holds
from vlm.training.init_from import InitFrom
from vlm.training.launch import check_ranks, srun_environment, start_ranks
from vlm.training.module import TrainingModule
from vlm.training.optimizer import AdamW
from vlm.training.schedule import CosineSchedule
from vlm.training.tower_options import Compile, TowerOptions
from vlm.training.watchdog import Watchdog

log = logging.getLogger(__name__)

# The workers of a run that was killed end within moments, and hold the lock until then.
_LOCK_SECONDS = 20

MAY_CHANGE = (
    "plan",
    "run.name",
    "run.resume",
    "run.accept_changes",
    "resolved",
    "init_from",
    "resize_positions",
    "paths",
    "make_data",
    "objective.implementation",
    "data.num_workers",
    "data.max_broken_share",
    "data.remote",
    "data.cache",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.micro_batch_size",
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.log_every_n_steps",
    "trainer.hang_minutes",
    "checkpoint",
    "evaluation",
    "suite",
    "logger",
)
"""Keys, and all under them, that may differ at resume: they do not change what is computed."""

FIXED = ("model", "tokenizer", "data.preprocess")
"""Keys that may never differ at resume."""

_MOST_STEPS = 10**12


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How long, on what, and how precisely to train.

    Args:
        devices: processes on each node, one a device; "auto" takes every GPU, or one process on a CPU.
        strategy: what spreads the model over devices; ddp is left out with one device in all.
        precision: Lightning's names: "32-true", "bf16-mixed".
        gradient_clip: largest norm of the gradient of both towers; null leaves it as it is.
        micro_batch_size: rows that the towers of a rank see at once; null: all. The loss stays that of the
            whole batch, each row is encoded once more.
        ema_decay: of an average of the weights over the steps, which checkpoints hold too; null: none.
        activation_checkpointing: blocks of the towers keep their input alone for the backward, and run
            forward again in it.
        compile: what torch.compile makes programs of in training, blocks or whole towers; null: nothing.
        hang_minutes: ends the run, with a report, if for so long no step and no batch of an evaluation is
            finished; null: never. NCCL itself aborts waiting ranks after 10, with less to say.
    """

    max_steps: int
    devices: int | Literal["auto"]
    num_nodes: int
    accelerator: str
    strategy: Strategy
    precision: Literal["32-true", "bf16-mixed"]
    gradient_clip: float | None
    micro_batch_size: int | None
    ema_decay: float | None
    activation_checkpointing: bool
    compile: Compile | None
    log_every_n_steps: int
    hang_minutes: int | float | None

    def __post_init__(self) -> None:
        for name in ("max_steps", "num_nodes", "log_every_n_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name}={getattr(self, name)} must be at least 1")
        if self.devices != "auto" and self.devices < 1:
            raise ConfigError(f"trainer.devices={self.devices} must be at least 1, or auto for every GPU")
        if self.max_steps > _MOST_STEPS:
            raise ConfigError(f"trainer.max_steps={self.max_steps} must be at most {_MOST_STEPS}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(f"trainer.micro_batch_size={self.micro_batch_size} must be at least 1, or null")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"trainer.ema_decay={self.ema_decay} must be in [0, 1), or null for no average")
        if self.hang_minutes is not None and self.hang_minutes <= 0:
            raise ConfigError(f"trainer.hang_minutes={self.hang_minutes} must be above 0, or null")
        if self.compile is not None and self.strategy == "deepspeed_zero3":
            raise ConfigError(
                f"trainer.compile={self.compile} with trainer.strategy=deepspeed_zero3, which gathers "
                "weights in every layer, so that little is left to compile; take trainer.strategy=fsdp2, or "
                "trainer.compile=null"
            )
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ConfigError(
                f"trainer.gradient_clip={self.gradient_clip} must be positive, or null for none"
            )

    @property
    def ranks_per_node(self) -> int:
        """`devices`, counted where they are "auto"."""
        if self.devices != "auto":
            return self.devices
        return max(1, torch.cuda.device_count() if self.accelerator != "cpu" else 0)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.ranks_per_node * self.num_nodes

    @property
    def tower_options(self) -> TowerOptions:
        """How the towers compute."""
        return TowerOptions(activation_checkpointing=self.activation_checkpointing, compile=self.compile)

    def engine(self) -> Engine:
        """What `strategy` names."""
        return build_engine(self.strategy, precision=self.precision, gradient_clip=self.gradient_clip)

    def build(self, engine: Engine, **lightning: Any) -> L.Trainer:
        """Lightning's trainer, with everything off that this project does itself."""
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)  # it would tell of TPUs
        try:
            trainer = L.Trainer(
                devices=self.devices,
                num_nodes=self.num_nodes,
                accelerator=self.accelerator,
                strategy=engine.strategy(one_device=self.world_size == 1),
                precision=engine.lightning_precision,
                plugins=srun_environment(),
                max_epochs=1,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,  # StepLog logs; it would warn of a run of fewer steps
                use_distributed_sampler=False,
                **lightning,
            )
        except (
            TypeError,
            ValueError,
            RuntimeError,
            L.fabric.utilities.exceptions.MisconfigurationException,
        ) as error:
            raise ConfigError(f"trainer.devices/accelerator/strategy/precision: {error}") from error
        check_ranks(os.environ, devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        engine.check(trainer)
        return trainer


@dataclass(frozen=True, kw_only=True)
class CheckpointEvery:
    """When to write checkpoints, and which stay; one is always written at the end and after a signal.

    Args:
        every_minutes: also whenever so much time has passed since the last; null: by steps alone.
        keep_last: how many of the newest stay; null keeps all.
        keep_best: a logged metric, such as eval/val/acc1, whose best checkpoint stays too.
    """

    every_n_steps: int
    every_minutes: int | float | None
    keep_last: int | None
    keep_best: str | None

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "keep_last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"checkpoint.{name}={value} must be at least 1")
        if self.every_minutes is not None and self.every_minutes <= 0:
            raise ConfigError(f"checkpoint.every_minutes={self.every_minutes} must be above 0, or null")


@dataclass(frozen=True, kw_only=True)
class EvaluateEvery:
    """When and how to run the suite during training; it always runs at the end.

    Args:
        weights: those of the step, or "ema", their average so far.
    """

    every_n_steps: int
    weights: Literal["model", "ema"]
    batch_size: int
    num_workers: int

    def __post_init__(self) -> None:
        if self.every_n_steps < 1 or self.batch_size < 1 or self.num_workers < 0:
            raise ConfigError(
                f"evaluation.every_n_steps={self.every_n_steps} and evaluation.batch_size={self.batch_size} "
                f"must be at least 1, evaluation.num_workers={self.num_workers} at least 0"
            )


@runtime_checkable
class DataMaker(Protocol):
    """Something that writes shards where they are not there yet."""

    def make(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training run needs, built and checked.

    Args:
        accept_changes: keys of the configuration, and all under them, that may differ at resume.
        init_from: run or checkpoint whose weights a new run starts with.
        resize_positions: whether positional embeddings of these, or of pretrained weights, may be resized.
        freeze: the tower, `image` or `text`, that keeps its weights, with its projection.
        config: the resolved configuration, plain data, kept with every checkpoint.
    """

    folder: Path
    resume: bool
    accept_changes: Sequence[str]
    seed: int
    init_from: str | None
    resize_positions: bool
    freeze: str | None
    make_data: DataMaker | None
    data: TrainData
    tokenizer: TokenizerRecipe | None
    model: ModelSpec
    objective: Objective
    optimizer: AdamW
    schedule: CosineSchedule
    trainer: Trainer
    checkpoint: CheckpointEvery
    evaluation: EvaluateEvery
    evaluators: Mapping[str, Evaluator]
    loggers: tuple[Logger, ...]
    config: Mapping[str, Any]


def train(run: Run) -> Path:
    """Train to `trainer.max_steps`, from the last whole checkpoint where there is one to go on from.

    Returns the run's folder.

    Raises:
        StoppedError: a signal ended the run, after a checkpoint.
        VlmError: for whatever the user can change; before the first step where it can be known then.
    """
    run.schedule.check(run.trainer.max_steps)
    _check_best(run)
    check_held(run)
    engine = run.trainer.engine()
    trainer = run.trainer.build(engine, logger=list(run.loggers))
    run.data.check_world_size(trainer.world_size)
    run.data.check_tokenizer(run.tokenizer)
    _check_sizes(run)
    _check_freeze(run)
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
        config=_resolved(run),
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
        _check_unchanged(run, start, data)
        tokenizer = read_tokenizer(start) if run.tokenizer else None
        check_buildable(start)
    else:
        tokenizer = _new_tokenizer(run, data, init)
    for evaluator in run.evaluators.values():
        evaluator.check()
    spec = _spec(run, tokenizer, start, init)
    model = described(spec)
    run.optimizer.lr_scales(model)
    _check_batch_norm(run, model)
    run.trainer.tower_options.check(model)
    if start is None:
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
                draft.write_text(json.dumps(_resolved(run), indent=2, ensure_ascii=False))
    return start


def _new_tokenizer(run: Run, data: TrainSet, init: InitFrom | None) -> Tokenizer | None:
    if run.tokenizer is None:
        return None
    if init is not None and init.has_text:
        tokenizer = init.tokenizer(run.tokenizer.context_length)
    else:
        tokenizer = run.tokenizer.build(data.captions)
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


def _check_unchanged(run: Run, start: Path, data: TrainSet) -> None:
    """Refuse to resume with another model, objective, schedule, order of samples or data set.

    What run.accept_changes names may change, except what the weights themselves depend on.
    """
    try:
        old, new = _fixed(read_config(start)), _fixed(_resolved(run))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{start}/{CONFIG} is not the configuration of a run: {error!r}") from error
    changes = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys()}
    stored = read_description(start).data or {}
    changes |= {f"{key}.shards": pair for key, pair in data.beside(stored).items()}
    changes = {key: (before, now) for key, (before, now) in sorted(changes.items()) if before != now}
    refused = {key: change for key, change in changes.items() if not _under(key, run.accept_changes)}
    listing = "; ".join(f"{key}: was {before!r}, is {now!r}" for key, (before, now) in changes.items())
    if any(_under(key, FIXED) for key in changes):
        raise ConfigError(
            f"run.resume=true, but the configuration has changed, and the weights depend on it: {listing}"
        )
    if refused:
        keys = ",".join(refused)
        raise ConfigError(
            f"run.resume=true, but the configuration has changed: {listing}. Change it back, or confirm by "
            f"run.accept_changes=[{keys}]"
        )
    if changes:
        log.warning("going on with changes: %s", listing)


def _resolved(run: Run) -> dict[str, Any]:
    """The configuration, and what follows from it and the ranks that there are."""
    return {**run.config, "resolved": {"num_groups": run.objective.num_groups}}


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change at resume, by key; data may move to another folder.

    Ranks may be more or fewer, so that for the objective it is not how many are in a group that counts.
    """
    data = config["paths"]["data"].rstrip("/") + "/"

    def relative(value: Any) -> Any:
        if isinstance(value, list):
            return [relative(item) for item in value]
        return value.removeprefix(data) if isinstance(value, str) else value

    fixed = {key: relative(value) for key, value in _flat(config).items() if not _under(key, MAY_CHANGE)}
    if "objective.group_size" in fixed:
        groups = config.get("resolved", {}).get("num_groups", 1)
        fixed["objective.group_size"] = "one group of all pairs"
        if groups > 1:
            pairs = fixed["data.global_batch_size"] // groups
            fixed["objective.group_size"] = f"{groups} groups of {pairs} pairs"
    return fixed


def _under(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _check_batch_norm(run: Run, model: nn.Module) -> None:
    """Refuse micro-batches where a tower takes statistics over the rows that it sees at once."""
    size = run.trainer.micro_batch_size
    if size is None or size >= run.data.global_batch_size // Topology.current().world_size:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"trainer.micro_batch_size={size} with batch normalisation in {name}: its statistics would "
                "be those of micro-batches; set it to null, or take another norm, as by "
                "model.image.options.norm_layer=groupnorm1"
            )


def _check_best(run: Run) -> None:
    """The metric that picks the best checkpoint must come from an evaluation of this run."""
    best = run.checkpoint.keep_best
    if best is None or best.startswith(tuple(f"eval/{name}/" for name in run.evaluators)):
        return
    names = ", ".join(f"eval/{name}/..." for name in run.evaluators) or "none, as there is no suite"
    raise ConfigError(f"checkpoint.keep_best={best} is no metric of this run; there are {names}")


def _check_freeze(run: Run) -> None:
    towers = ["image", *(["text"] if run.model.text else [])]
    if run.freeze is not None and run.freeze not in towers:
        raise ConfigError(f"freeze={run.freeze!r} is no tower of this model; there is {' and '.join(towers)}")


def check_held(run: Run) -> None:
    """What the run keeps beside weights and optimizer must be something that its strategy can hold.

    Raises:
        ConfigError: naming what asks for it, and strategies that would do.
    """
    decay = run.trainer.ema_decay
    if decay is not None:
        check_holds(run.trainer.strategy, AVERAGE, setting=f"trainer.ema_decay={decay}")
    elif run.evaluation.weights == "ema":
        raise ConfigError(
            "evaluation.weights=ema, but trainer.ema_decay=null: there is no average of weights; set it, say "
            "to 0.9999, or evaluation.weights=model"
        )


def _check_sizes(run: Run) -> None:
    """What the data give must fit what the towers take."""
    if (run.tokenizer is None) != (run.model.text is None):
        raise ConfigError("images alone need both tokenizer=none and model.text=null, and texts neither")
    if run.tokenizer and run.model.text and run.tokenizer.context_length > run.model.text.context_length:
        raise ConfigError(
            f"tokenizer.context_length={run.tokenizer.context_length} exceeds "
            f"model.text.context_length={run.model.text.context_length}"
        )
    if run.data.preprocess.image_size != run.model.image.image_size:
        raise ConfigError(
            f"data.preprocess.image_size={run.data.preprocess.image_size} is not "
            f"model.image.image_size={run.model.image.image_size}; set the latter alone"
        )
