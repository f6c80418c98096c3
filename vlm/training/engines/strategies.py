"""The values of `trainer.strategy`."""

import importlib.util
from collections.abc import Mapping
from typing import Literal, get_args

from vlm.errors import ConfigError
from vlm.training.engines.engine import Engine
from vlm.training.engines.fsdp2 import Fsdp2

Strategy = Literal["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

AVERAGE = "an average of the weights"

CANNOT_HOLD: Mapping[Strategy, frozenset[str]] = {
    "deepspeed_zero1": frozenset({AVERAGE}),
    "deepspeed_zero2": frozenset({AVERAGE}),
    "deepspeed_zero3": frozenset({AVERAGE}),
}
"""What a run may keep beside weights and optimizer, and a strategy would not keep right.

An average is a second model, fed from float32 weights. DeepSpeed runs one model an engine, and its weights in
float32 are one-dimensional shares inside its optimizer.
"""


def check_holds(strategy: Strategy, what: str, *, setting: str) -> None:
    """Refuse a setting that needs what its strategy cannot hold.

    Args:
        what: one of the above.
        setting: key and value that ask for it, for the message.

    Raises:
        ConfigError: naming both settings, and the strategies that would do.
    """
    if what in CANNOT_HOLD.get(strategy, ()):
        able = " or ".join(s for s in STRATEGIES if what not in CANNOT_HOLD.get(s, ()))
        raise ConfigError(
            f"{setting} with trainer.strategy={strategy}, which cannot hold {what}; take trainer={able}, or "
            "leave it out"
        )


def build_engine(strategy: Strategy, *, precision: str, gradient_clip: float | None) -> Engine:
    """The engine that a strategy names.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    if strategy == "ddp":
        return Engine(precision=precision, gradient_clip=gradient_clip)
    if strategy == "fsdp2":
        return Fsdp2(precision=precision, gradient_clip=gradient_clip)
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"trainer.strategy={strategy} needs the package deepspeed, which is not installed: "
            "pip install -e '.[deepspeed]', or take trainer.strategy=fsdp2 or ddp"
        )
    from vlm.training.engines.deepspeed import DeepSpeed  # an optional package, and slow to import

    return DeepSpeed(stage=int(strategy[-1]), precision=precision, gradient_clip=gradient_clip)
