"""How a text decoder writes a caption."""

from dataclasses import dataclass
from typing import Any

from vlm.errors import ConfigError

STRATEGIES = ("greedy", "beam", "nucleus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Which of the likely next tokens is taken.

    Raises:
        ConfigError: a value is out of range; it names `decoding.<field>`.
    """

    strategy: str
    """The likeliest token, the likeliest caption of a beam search, or a draw among the likeliest tokens."""
    beams: int
    """Captions that a beam search follows; no other strategy reads it."""
    top_p: float
    """Nucleus sampling draws from the fewest tokens that have this probability together."""
    temperature: float
    """Nucleus sampling divides logits by it."""
    max_length: int | None
    """Tokens of a caption; None for as many as the model's context holds."""
    seed: int
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"decoding.strategy={self.strategy} is not one of {', '.join(STRATEGIES)}")
        _require_whole("beams", self.beams, least=1)
        _require_whole("seed", self.seed, least=0)
        if self.max_length is not None:
            _require_whole("max_length", self.max_length, least=2)  # with both marks
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"decoding.top_p={self.top_p} must be above 0 and at most 1")
        if not (_is_number(self.temperature) and 0 < self.temperature < float("inf")):
            raise ConfigError(
                f"decoding.temperature={self.temperature} must be a number above 0; the likeliest token "
                "every time is decoding.strategy=greedy"
            )


def _require_whole(name: str, value: Any, *, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"decoding.{name}={value} must be a whole number from {least} on")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
