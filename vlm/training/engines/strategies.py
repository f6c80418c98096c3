"""The values of `trainer.strategy`."""

import importlib.util
from typing import Literal, get_args

from vlm.errors import ConfigError
from vlm.training.engines.engine import Engine
from vlm.training.engines.fsdp2 import Fsdp2

Strategy = Literal["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


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
            "pip install 'vlm[deepspeed]', or take trainer.strategy=fsdp2 or ddp"
        )
    from vlm.training.engines.deepspeed import DeepSpeed  # an optional package, and slow to import

    return DeepSpeed(stage=int(strategy[-1]), precision=precision, gradient_clip=gradient_clip)
