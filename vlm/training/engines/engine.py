"""DDP or one process: every rank has the whole model and its optimizer."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from vlm.distributed import Topology
from vlm.models import DualEncoder
from vlm.objectives import Encoded, Objective
from vlm.training.checkpoint import load_moments, moments_of
from vlm.types import Batch

Encode = Callable[[Batch], Encoded]


class Engine:
    """What a training step and a checkpoint need of a strategy; the base of those that cut a model up.

    Every method is called on every rank. Weights and moments go in and out in the form of a checkpoint:
    whole, in float32, by the parameters' names, so that a checkpoint does not depend on who wrote it.

    Args:
        gradient_clip: largest allowed norm of the gradient of both towers; None leaves it as it is.
    """

    def __init__(self, *, precision: str, gradient_clip: float | None) -> None:
        self.precision = precision
        self.gradient_clip = gradient_clip

    def strategy(self, *, one_device: bool) -> str | Strategy:
        """For Lightning's trainer."""
        return "auto" if one_device else "ddp"

    @property
    def lightning_precision(self) -> Literal["32-true", "bf16-mixed"]:
        """For Lightning's trainer, which would put a whole step under autocast, its backward with it."""
        return "32-true"

    def check(self, trainer: L.Trainer) -> None:
        """Raise a ConfigError where the trainer's devices will not do."""

    def prepare(self, model: DualEncoder) -> None:
        """Cut up a model that has its weights, or leave it as it is."""

    def ready(
        self, model: DualEncoder, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor] | None
    ) -> None:
        """Called once Lightning has wrapped model and optimizer; None: there are no moments yet."""
        if moments is not None:
            load_moments(optimizer, dict(model.named_parameters()), moments)

    def encode(self, module: L.LightningModule, objective: Objective, model: DualEncoder) -> Encode:
        """`objective.encode` of a micro-batch, so that what it gives can be sent backward.

        Nothing but the towers runs under autocast: losses and what is computed backward are not made for it.
        """
        return cast(Encode, self._autocast(module.device)(partial(objective.encode, model)))

    def teach(self, module: L.LightningModule, objective: Objective, teacher: DualEncoder) -> Encode:
        """`objective.teach` of a micro-batch, in the same precision."""
        return cast(Encode, self._autocast(module.device)(torch.no_grad()(partial(objective.teach, teacher))))

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(
            device.type,
            torch.bfloat16,
            enabled=self.precision == "bf16-mixed",
            cache_enabled=False,  # what is cast without a graph, for micro-batches, would be met by the next
        )

    def backward(self, module: L.LightningModule, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch; after the last they are averaged over ranks."""
        if last:
            module.manual_backward(loss)
        else:
            torch.autograd.backward(loss)  # DDP reduces only what manual_backward has prepared

    def step(self, model: DualEncoder, optimizer: LightningOptimizer) -> Tensor:
        """Clip and step; the norm of the gradient before it was clipped."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = self._full(torch.nn.utils.get_total_norm(gradients))
        if self.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.gradient_clip, norm)
        optimizer.step()
        return norm

    def weights(self, model: DualEncoder) -> dict[str, Tensor]:
        """All weights, on the first rank; nothing on the others."""
        return kept_by_first_rank(
            (name, partial(self._full, value)) for name, value in model.state_dict(keep_vars=True).items()
        )

    def moments(self, model: DualEncoder, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """What the optimizer keeps, on the first rank; nothing on the others."""
        found = moments_of(optimizer, dict(model.named_parameters()))
        return kept_by_first_rank((name, partial(self._full, value)) for name, value in found.items())

    def _full(self, value: Tensor) -> Tensor:
        """The whole of a tensor that may be cut up."""
        return value


def kept_by_first_rank(tensors: Iterable[tuple[str, Callable[[], Tensor]]]) -> dict[str, Tensor]:
    """What each function gathers, one after the other on every rank, in float32 on the first rank's CPU."""
    kept = {}
    for name, gather in tensors:
        whole = gather().detach()
        if Topology.current().is_main:
            kept[name] = (whole.float() if whole.is_floating_point() else whole).cpu().contiguous()
    return kept


def make_contiguous(model: DualEncoder) -> None:
    """Give all weights the plain memory layout, which those need who cut them up as rows of numbers."""
    for parameter in model.parameters():
        if parameter.ndim > 2:
            # Not `contiguous()`, which leaves the strides of a convolution by one pixel as they are.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
