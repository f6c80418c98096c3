"""Training methods, one file each."""

from vlm.objectives.clip import ClipObjective
from vlm.objectives.degla import DeglaObjective
from vlm.objectives.margin_softmax import MarginSoftmaxObjective
from vlm.objectives.objective import Encoded, Objective
from vlm.objectives.siglip import SigLipObjective

__all__ = [
    "ClipObjective",
    "DeglaObjective",
    "Encoded",
    "MarginSoftmaxObjective",
    "Objective",
    "SigLipObjective",
]
