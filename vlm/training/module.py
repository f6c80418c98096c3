"""The one training step."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from vlm.distributed import gather_objects, mean_over_ranks
from vlm.errors import ConfigError, DataError
from vlm.inference import EMA, read_description
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import Objective
from vlm.training.accumulation import loss_and_gradients
from vlm.training.centres import load_centres
from vlm.training.checkpoint import load_moments, load_step, load_weights_into, moments_of, read_moments
from vlm.training.clock import StepClock
from vlm.training.ema import WeightAverage, decay_at
from vlm.training.engines import Encode, Engine, kept_by_first_rank
from vlm.training.init_from import InitFrom
from vlm.training.optimizer import AdamW
from vlm.training.outside import Outside
from vlm.training.schedule import CosineSchedule
from vlm.training.tower_options import TowerOptions
from vlm.types import Batch, StepOutput

log = logging.getLogger(__name__)


class TrainingModule(L.LightningModule):
    """Encode, loss, backward, clip, step: for every objective and every strategy.

    Optimization is manual so that the same path can encode several micro-batches for one loss. Every random
    number is drawn from a generator seeded by (seed, step, rank, micro-batch), so that a resumed run draws
    what the uninterrupted one would have drawn.

    Args:
        engine: what spreads the towers over ranks, and steps them.
        max_steps: length of the run in optimizer steps, for the schedule.
        micro_batch_size: rows that the towers see at once; None: all of a rank.
        ema_decay: of the average of the weights; None: there is none.
        ema_warmup: whether it decays faster at first, see `decay_at`.
        tower_options: how the towers compute.
        resume_from: checkpoint folder to take weights, moments and step from.
        init_from: checkpoint to take weights alone from.
        resize_positions: whether positional embeddings of pretrained weights may be resized.
        freeze: the tower that keeps its weights, with its projection; it has no dropout either.

    Source: of a frozen image tower, arXiv:2111.07991.
    """

    def __init__(
        self,
        spec: ModelSpec,
        objective: Objective,
        *,
        engine: Engine,
        optimizer: AdamW,
        schedule: CosineSchedule,
        max_steps: int,
        micro_batch_size: int | None,
        ema_decay: float | None,
        ema_warmup: bool,
        tower_options: TowerOptions,
        seed: int,
        resume_from: Path | None,
        init_from: InitFrom | None,
        resize_positions: bool,
        freeze: str | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.spec = spec
        self.objective = objective
        self.engine = engine
        self.optimizer_recipe = optimizer
        self.schedule = schedule
        self.max_steps = max_steps
        self.micro_batch_size = micro_batch_size
        self.ema_decay = ema_decay
        self.ema_warmup = ema_warmup
        self.tower_options = tower_options
        self.seed = seed
        self.resume_from = resume_from
        self.init_from = init_from
        self.resize_positions = resize_positions
        self.freeze_tower = freeze
        self.step = 0 if resume_from is None else load_step(resume_from)
        self.clock = StepClock()
        self.model: DualEncoder | None = None
        self.average: WeightAverage | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._lr_scales: dict[str, float] = {}
        self._outside: Outside | None = None
        self._outside_optimizer: torch.optim.Optimizer | None = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        torch.manual_seed(_seed(self.seed, "weights"))
        starts_elsewhere = self.resume_from is not None or self.init_from is not None
        spec = self.spec.without_pretrained() if starts_elsewhere else self.spec
        self.model = build_model(spec, resize_positions=self.resize_positions)
        if self.resume_from is not None:
            load_weights_into(self.model, self.resume_from)
        elif self.init_from is not None:
            self.init_from.load_into(self.model)
        for module in self._frozen():
            module.requires_grad_(False)
        self._shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        self._lr_scales = self.optimizer_recipe.lr_scales(self.model)
        if self.ema_decay is not None:
            self.average = self._average_of(self.model)
            self.engine.prepare(self.average.model)
        self._outside = Outside(self.model)
        self.tower_options.apply(self.model)
        self.engine.prepare(self.model)

    def _average_of(self, model: DualEncoder) -> WeightAverage:
        """The average of the run so far, or a beginning with the weights as they are."""
        if self.resume_from is None:
            return WeightAverage(model)
        if EMA in read_description(self.resume_from).files:
            return WeightAverage(model, resume_from=self.resume_from)
        log.warning("%s has no %s: the average of weights begins with its weights", self.resume_from, EMA)
        return WeightAverage(model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The engine's optimizer; that of the parameters outside is ours."""
        optimizer = self.optimizer_recipe.build(dict(self.towers.named_parameters()), self._lr_scales)
        if self.average is not None:
            self.average.to(self.device)
        self._outside_optimizer = self.outside.optimizer(self.optimizer_recipe, self.device)
        return optimizer

    def on_fit_start(self) -> None:
        """What the optimizers had when the run was interrupted."""
        if self.objective.centres is not None:
            if self.resume_from is not None:
                load_centres(self.resume_from, self.objective.centres)
            self.objective.centres.to(self.device)
        moments = None if self.resume_from is None else read_moments(self.resume_from, self._shapes)
        self.engine.ready(self.towers, self._engine_optimizer.optimizer, moments)
        if moments is not None:
            load_moments(self.outside_optimizer, self.outside.parameters, moments)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function: the one way in for engines that have to see each forward."""
        return function(*arguments)

    def weights(self) -> dict[str, Tensor]:
        """The whole model by name, as a checkpoint has it, on the first rank; called on every rank."""
        return self._whole(self.towers, self.outside)

    def average_weights(self) -> dict[str, Tensor] | None:
        """Their average in the same form, None where there is none; called on every rank."""
        return None if self.average is None else self._whole(self.average.model, self.average.outside)

    def _whole(self, model: DualEncoder, outside: Outside) -> dict[str, Tensor]:
        named = ((name, p.detach) for name, p in outside.parameters.items())
        return {**self.engine.weights(model), **kept_by_first_rank(named)}

    def moments(self) -> dict[str, Tensor]:
        """What both optimizers keep, as a checkpoint has it, on the first rank; called on every rank."""
        outside = moments_of(self.outside_optimizer, self.outside.parameters)
        return {
            **self.engine.moments(self.towers, self._engine_optimizer.optimizer),
            **kept_by_first_rank((name, value.detach) for name, value in outside.items()),
        }

    @property
    def _engine_optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    @property
    def towers(self) -> DualEncoder:
        """The model, once it is built."""
        if self.model is None:
            raise RuntimeError("configure_model has not run")
        return self.model

    @property
    def outside(self) -> Outside:
        """What the engine does not see, once the model is built."""
        if self._outside is None:
            raise RuntimeError("configure_model has not run")
        return self._outside

    @property
    def outside_optimizer(self) -> torch.optim.Optimizer:
        """Steps what is outside, once there are optimizers."""
        if self._outside_optimizer is None:
            raise RuntimeError("configure_optimizers has not run")
        return self._outside_optimizer

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        if batch_index == 0:
            self._check_first(batch)
        optimizer = self._engine_optimizer
        lr = self._set_lr(optimizer.optimizer, self.outside_optimizer)
        optimizer.zero_grad()
        self.outside_optimizer.zero_grad()
        for module in self._frozen():
            module.eval()
        self.clock.start(self.device)
        self.objective.before_step(self.step)
        output = loss_and_gradients(
            self.objective,
            self.towers,
            batch,
            encode=self.engine.encode(self, self.objective, self.towers),
            teach=self._teach(),
            micro_batch_size=self.micro_batch_size,
            seed=self._set_seed,
            backward=self._backward,
            done=self.clock.mark,
        )
        self.outside.average_gradients()
        gradient_norm = self.engine.step(self.towers, optimizer)
        self.outside_optimizer.step()
        if self.objective.centres is not None:
            self.optimizer_recipe.step_centres(self.objective.centres, lr)
        self.objective.after_step(self.towers, self.step)
        if self.average is not None and self.ema_decay is not None:
            decay = decay_at(self.step, self.ema_decay) if self.ema_warmup else self.ema_decay
            self.average.update(self.towers, decay=decay)
        self.clock.mark("optimizer")
        self.step += 1
        return {"metrics": {**_named(output), "train/grad_norm": gradient_norm.detach(), "train/lr": lr}}

    def _teach(self) -> Encode | None:
        """The average of the weights is the teacher of an objective that needs one."""
        if self.average is None or not self.objective.needs_teacher:
            return None
        return self.engine.teach(self, self.objective, self.average.model)

    def _frozen(self) -> tuple[nn.Module, ...]:
        return () if self.freeze_tower is None else self.towers.side(self.freeze_tower)

    def _set_seed(self, number: int | None) -> None:
        """For a micro-batch, or for the loss, for which all ranks draw the same."""
        own = () if number is None else (self.global_rank, number)
        torch.manual_seed(_seed(self.seed, self.step, *own))

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.engine.backward(self, loss, last=last)

    def _set_lr(self, *optimizers: torch.optim.Optimizer) -> float:
        lr = self.optimizer_recipe.lr * self.schedule.lr_fraction(self.step, self.max_steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
        return lr

    def _check_first(self, batch: Batch) -> None:
        missing = self.objective.required_keys - batch.keys()
        if missing:
            name = type(self.objective).__name__
            message = f"objective {name} needs {sorted(missing)}, which the data does not give"
            raise ConfigError(message).on_all_ranks()
        rows = gather_objects(len(batch["image"]))
        if len(set(rows)) > 1:
            raise DataError(
                f"ranks have batches of {rows} rows; every rank must have the same number, which is "
                "data.global_batch_size divided by the ranks"
            ).on_all_ranks()


def _named(output: StepOutput) -> dict[str, Tensor]:
    losses = {f"train/loss/{name}": term.detach() for name, term in output.terms.items()}
    metrics = {f"train/{name}": value for name, value in output.metrics.items()}
    return {"train/loss": output.total.detach(), **losses, **metrics}


def averaged(metrics: Mapping[str, Tensor | float], *, device: torch.device) -> dict[str, float]:
    """Means over ranks as plain numbers, by one collective and one wait for the device."""
    tensors = [torch.as_tensor(value, device=device, dtype=torch.float32) for value in metrics.values()]
    values = torch.stack([tensor.squeeze() for tensor in tensors])
    return dict(zip(metrics, mean_over_ranks(values).tolist(), strict=True))


def _seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
