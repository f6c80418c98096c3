"""What a training run is made of."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from vlm.data import TrainData
from vlm.data.tokenizers import TokenizerRecipe
from vlm.errors import ConfigError
from vlm.evaluation import Evaluator
from vlm.models import ModelSpec
from vlm.objectives import Objective
from vlm.training.engines import Engine, Strategy, build_engine
from vlm.training.launch import check_ranks, srun_environment
from vlm.training.optimizer import AdamW
from vlm.training.schedule import CosineSchedule
from vlm.training.tower_options import Compile, TowerOptions

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
        ema_warmup: whether the average forgets faster at first, so that it soon leaves random weights behind;
            false where it is to remember those that the run begins with, as a teacher does.
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
    ema_warmup: bool
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
        if self.ema_decay is not None and not 0 <= self.ema_decay <= 1:
            raise ConfigError(f"trainer.ema_decay={self.ema_decay} must be in [0, 1], or null for no average")
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
        before: whether a new run evaluates the weights that it begins with too, as step 0.
        weights: those of the step, or "ema", their average so far.
    """

    every_n_steps: int
    before: bool
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
