"""AdamW with the field's usual parameter groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Decoupled weight decay on matrices; none on norms, biases and the temperature.

    Source: arXiv:1711.05101; the exclusions are those of arXiv:2103.00020, section 2.5.
    """

    lr: float
    betas: Sequence[float]
    eps: float
    weight_decay: float

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optimizer.lr={self.lr} must be positive")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1)")
        if self.weight_decay < 0 or self.eps <= 0:
            raise ConfigError(
                f"optimizer.weight_decay={self.weight_decay} must not be negative, optimizer.eps={self.eps} "
                "must be positive"
            )

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """The optimizer of those that are trainable, in two groups."""
        trainable = [p for p in parameters if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True
        )
