"""Training methods, one file each."""

from vlm.objectives.clip import ClipObjective
from vlm.objectives.coca import CocaObjective
from vlm.objectives.degla import DeglaObjective
from vlm.objectives.margin_softmax import MarginSoftmaxObjective
from vlm.objectives.objective import Encoded, Objective
from vlm.objectives.siglip import SigLipObjective
from vlm.objectives.sycoca import SycocaObjective

__all__ = [
    "ClipObjective",
    "CocaObjective",
    "DeglaObjective",
    "Encoded",
    "MarginSoftmaxObjective",
    "Objective",
    "SigLipObjective",
    "SycocaObjective",
]
