"""Learning rate as a function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from vlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up to the peak, then a half cosine down to a share of it.

    Args:
        warmup_steps: steps until the peak is reached.
        final_lr_fraction: share of the peak that is left at the last step.
    """

    warmup_steps: int
    final_lr_fraction: float

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps={self.warmup_steps} must not be negative")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ConfigError(f"schedule.final_lr_fraction={self.final_lr_fraction} must be in [0, 1]")

    def check(self, max_steps: int) -> None:
        """Raise a ConfigError where the warm-up does not end before the run does."""
        if self.warmup_steps >= max_steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} is not below trainer.max_steps={max_steps}: "
                "the learning rate would never reach its peak"
            )

    def lr_fraction(self, step: int, max_steps: int) -> float:
        """Share of the peak learning rate that step `step` (from 0) of `max_steps` uses."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine
