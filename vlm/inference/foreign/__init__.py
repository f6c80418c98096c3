"""Models of other projects, made into checkpoints of this one; everything else knows only those."""

from vlm.inference.foreign.facts import Given
from vlm.inference.foreign.importer import import_model

__all__ = ["Given", "import_model"]
