"""What spreads a model over ranks: one file a kind of engine, each with only what is different there."""

from vlm.training.engines.engine import Encode, Engine, kept_by_first_rank
from vlm.training.engines.strategies import AVERAGE, STRATEGIES, Strategy, build_engine, check_holds

__all__ = [
    "AVERAGE",
    "STRATEGIES",
    "Encode",
    "Engine",
    "Strategy",
    "build_engine",
    "check_holds",
    "kept_by_first_rank",
]
