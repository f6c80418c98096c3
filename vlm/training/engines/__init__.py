"""What spreads a model over ranks: one file a kind of engine, each with only what is different there."""

from vlm.training.engines.engine import Engine, kept_by_first_rank
from vlm.training.engines.strategies import STRATEGIES, Strategy, build_engine

__all__ = ["STRATEGIES", "Engine", "Strategy", "build_engine", "kept_by_first_rank"]
