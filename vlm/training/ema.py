"""An average of the weights over the steps of a run, as a model of its own."""

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vlm.inference import EMA
from vlm.models import DualEncoder
from vlm.training.checkpoint import load_weights_into
from vlm.training.outside import NAMES, Outside


class WeightAverage:
    """Exponential moving average of a model's weights: `average = decay * average + (1 - decay) * weight`.

    It begins as a copy of the model, before an engine cuts that up, and goes through the same engine. So it
    can be run under every strategy that can hold it, by an evaluation or as a teacher: `average.model` is in
    evaluation mode and takes no gradients. What is averaged are parameters, temperature and bias among them;
    buffers, such as statistics of batch normalisation, are those of the model.

    Args:
        model: whole, all parameters in its module tree.
        resume_from: checkpoint whose average to go on with.
    """

    def __init__(self, model: DualEncoder, *, resume_from: Path | None = None) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        if resume_from is not None:
            load_weights_into(self.model, resume_from, EMA)
        self.outside = Outside(self.model)

    def to(self, device: torch.device) -> None:
        """Move what no engine moves."""
        self.model.to(device)
        self.outside.to(device)

    @torch.no_grad()
    def update(self, model: DualEncoder, *, decay: float) -> None:
        """Take in the weights of `model` as they are now; each rank those that it holds."""
        weights = _parameters(model)
        averages = _parameters(self.model)
        pairs = [(_own(average), _own(weights[name])) for name, average in averages.items()]
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([a for a, _ in pairs], [w for _, w in pairs], 0)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def decay_at(step: int, decay: float) -> float:
    """Decay after step `step` (from 0): less at first, else a short run would keep what it began with.

    The average is then one over the last ninth of the steps so far; `decay` itself is reached after about
    9 / (1 - decay) steps. A function of the step: nothing to save, nothing to restore.
    """
    return min(decay, (1 + step) / (10 + step))


def _parameters(model: DualEncoder) -> dict[str, Tensor]:
    """All of them, whether a model has those of the loss inside or outside of its module tree."""
    outside = {name: getattr(model, name) for name in NAMES}
    return {**dict(model.named_parameters()), **{n: p for n, p in outside.items() if p is not None}}


def _own(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be cut up."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
