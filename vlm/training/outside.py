"""Parameters that no engine sees.

The temperature and the bias of the loss are one number each, and every digit counts: DeepSpeed would cast
them to bfloat16 and undo their clamp, ZeRO-3 and FSDP2 would cut them into pieces. They are taken out of the
module tree before an engine looks at it; here their gradients are averaged over ranks, and they are stepped.
"""

import torch
from torch import nn

from vlm.distributed import mean_over_ranks
from vlm.models import DualEncoder
from vlm.training.optimizer import AdamW

NAMES = ("logit_scale", "logit_bias")


class Outside:
    """float32 parameters, equal on every rank; `model` goes on having them, as plain attributes."""

    def __init__(self, model: DualEncoder) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        for name in NAMES:
            parameter = getattr(model, name)
            if parameter is not None:
                self.parameters[name] = parameter
                delattr(model, name)
                object.__setattr__(model, name, parameter)  # nn.Module's would put it back into the tree

    def to(self, device: torch.device) -> None:
        """Move them, as the engine does with all others."""
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device)

    def optimizer(self, recipe: AdamW, device: torch.device) -> torch.optim.Optimizer:
        """Move them to a device, and make the optimizer that steps them."""
        self.to(device)
        return recipe.build(self.parameters)

    def average_gradients(self) -> None:
        """Average over ranks, as the engine does with the gradients of all others."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if gradients:
            for gradient, mean in zip(gradients, mean_over_ranks(torch.stack(gradients)), strict=True):
                gradient.copy_(mean)
