"""AdamW with the field's usual parameter groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.errors import ConfigError
from vlm.models import ClassCentres, DualEncoder
from vlm.training.layer_decay import blocks_above, blocks_above_timm


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Decoupled weight decay on matrices; none on norms, biases and the temperature.

    Args:
        image_layer_decay: the learning rate of a parameter of the image tower is `lr` times this to the power
            of the number of blocks above it: embeddings and stem have the lowest, the last block and what
            follows it all of it. 1: the same for all.
        text_layer_decay: likewise.

    Source: arXiv:1711.05101; the exclusions are those of arXiv:2103.00020, section 2.5. Layer-wise rates:
    arXiv:2003.10555 and arXiv:2106.08254; their code decays the last block too, below a new head.
    """

    lr: float
    betas: Sequence[float]
    eps: float
    weight_decay: float
    image_layer_decay: float
    text_layer_decay: float

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
        for name in ("image_layer_decay", "text_layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"optimizer.{name}={getattr(self, name)} must be above 0 and at most 1, which is none"
                )

    def lr_scales(self, model: DualEncoder) -> dict[str, float]:
        """Share of the learning rate by name, of a model that is not cut up; who is not named has all of it.

        Raises:
            ConfigError: a tower whose rates are to fall is not there, or has no known order of blocks.
        """
        scales: dict[str, float] = {}
        for key, decay, place, count in (
            ("image_layer_decay", self.image_layer_decay, "image.trunk", blocks_above_timm),
            ("text_layer_decay", self.text_layer_decay, "text", blocks_above),
        ):
            if decay == 1:
                continue
            if model.text is None and place == "text":
                raise ConfigError(f"optimizer.{key}={decay}, but model.text=null; set it to 1.0")
            tower = model.get_submodule(place)
            above = count(tower)
            if not any(above.values()):
                raise ConfigError(
                    f"optimizer.{key}={decay}, but the blocks of {type(tower).__name__} have no known "
                    "order; set it to 1.0"
                )
            scales |= {f"{place}.{name}": decay**number for name, number in above.items()}
        return scales

    def build(
        self, parameters: Mapping[str, nn.Parameter], lr_scales: Mapping[str, float] | None = None
    ) -> torch.optim.AdamW:
        """The optimizer of those that are trainable: for each learning rate a group with weight decay and one
        without.

        Args:
            lr_scales: as `lr_scales` gives them; a group keeps its own as `lr_scale`.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                key = (lr_scales or {}).get(name, 1.0), parameter.ndim >= 2
                groups.setdefault(key, []).append(parameter)
        options: list[dict[str, Any]] = [
            {
                "params": groups[scale, is_matrix],
                "weight_decay": self.weight_decay if is_matrix else 0.0,
                "lr": self.lr * scale,
                "lr_scale": scale,
            }
            for scale, is_matrix in sorted(groups, reverse=True)
        ]
        return torch.optim.AdamW(
            options, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True
        )

    def step_centres(self, centres: ClassCentres, lr: float) -> None:
        """Step those that took part in the loss, at the learning rate of this step."""
        centres.step(lr=lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
