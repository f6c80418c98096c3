"""What was measured in turn, round after round, and how one compares with another."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Ratio:
    """One measurement over another, taken within each round, where the machine was the same for both."""

    rounds: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> "Ratio":
        """Of what was measured in the same rounds, in order."""
        return cls([value / other for value, other in zip(values, others, strict=True)])

    def __str__(self) -> str:
        spread = f" ({min(self.rounds):.2f} to {max(self.rounds):.2f})" if len(self.rounds) > 1 else ""
        return f"{median(self.rounds):.2f}{spread}"
