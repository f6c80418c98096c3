"""Training methods, one file each."""

from vlm.objectives.clip import ClipObjective
from vlm.objectives.objective import Encoded, Objective

__all__ = ["ClipObjective", "Encoded", "Objective"]
