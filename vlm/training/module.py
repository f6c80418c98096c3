"""The one training step."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vlm.distributed import Topology, mean_over_ranks
from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import Objective
from vlm.training.checkpoint import load_optimizer, load_step, load_weights_into
from vlm.training.init_from import InitFrom
from vlm.training.optimizer import AdamW
from vlm.training.schedule import CosineSchedule
from vlm.types import Batch, StepOutput


class TrainingModule(L.LightningModule):
    """Encode, loss, backward, clip, step: for every objective and every strategy.

    Optimization is manual so that the same path can later encode several micro-batches for one loss.
    Every random number of a step is drawn from a generator seeded by (seed, step, rank), so that a resumed
    run draws what the uninterrupted one would have drawn.

    Args:
        max_steps: length of the run in optimizer steps, for the schedule.
        gradient_clip: largest allowed norm of the whole gradient; None leaves it as it is.
        resume_from: checkpoint folder to take weights, moments and step from.
        init_from: checkpoint to take weights alone from.
        resize_positions: whether positional embeddings of pretrained weights may be resized.
    """

    def __init__(
        self,
        spec: ModelSpec,
        objective: Objective,
        *,
        optimizer: AdamW,
        schedule: CosineSchedule,
        max_steps: int,
        gradient_clip: float | None,
        seed: int,
        resume_from: Path | None,
        init_from: InitFrom | None,
        resize_positions: bool,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.spec = spec
        self.objective = objective
        self.optimizer_recipe = optimizer
        self.schedule = schedule
        self.max_steps = max_steps
        self.gradient_clip = gradient_clip
        self.seed = seed
        self.resume_from = resume_from
        self.init_from = init_from
        self.resize_positions = resize_positions
        self.step = 0 if resume_from is None else load_step(resume_from)
        self.model: DualEncoder | None = None

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer_recipe.build(self.towers)
        if self.resume_from is not None:
            load_optimizer(optimizer, self.towers, self.resume_from)
        return optimizer

    @property
    def towers(self) -> DualEncoder:
        """The model, once it is built."""
        if self.model is None:
            raise RuntimeError("configure_model has not run")
        return self.model

    def on_fit_start(self) -> None:
        self.objective.setup(Topology.current())

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        self._check_first(batch, batch_index)
        torch.manual_seed(_seed(self.seed, self.step, self.global_rank))
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        lr = self._set_lr(optimizer.optimizer)
        encoded = self.objective.encode(self.towers, batch)
        with torch.autocast(self.device.type, enabled=False):
            output = self.objective.loss(self.towers, {k: _full(v) for k, v in encoded.items()})
        optimizer.zero_grad()
        self.manual_backward(output.total)
        limit = torch.inf if self.gradient_clip is None else self.gradient_clip
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.towers.parameters(), limit)
        optimizer.step()
        self.objective.after_step(self.towers, self.step)
        self.step += 1
        return {"metrics": {**_named(output), "train/grad_norm": gradient_norm.detach(), "train/lr": lr}}

    def _set_lr(self, optimizer: torch.optim.Optimizer) -> float:
        lr = self.optimizer_recipe.lr * self.schedule.lr_fraction(self.step, self.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _check_first(self, batch: Batch, batch_index: int) -> None:
        missing = self.objective.required_keys - batch.keys()
        if batch_index == 0 and missing:
            name = type(self.objective).__name__
            raise ConfigError(f"objective {name} needs {sorted(missing)}, which the data does not give")


def _named(output: StepOutput) -> dict[str, Tensor]:
    losses = {f"train/loss/{name}": term.detach() for name, term in output.terms.items()}
    metrics = {f"train/{name}": value for name, value in output.metrics.items()}
    return {"train/loss": output.total.detach(), **losses, **metrics}


def averaged(metrics: Mapping[str, Tensor | float], *, device: torch.device) -> dict[str, float]:
    """Means over ranks as plain numbers, by one collective and one wait for the device."""
    tensors = [torch.as_tensor(value, device=device, dtype=torch.float32) for value in metrics.values()]
    values = torch.stack([tensor.squeeze() for tensor in tensors])
    return dict(zip(metrics, mean_over_ranks(values).tolist(), strict=True))


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
