"""Hard negatives: captions that resemble those of a sample and are wrong for its image."""

from vlm.curation.negatives.filters import Filters
from vlm.curation.negatives.llm import Llm
from vlm.curation.negatives.make import Made, make_negatives
from vlm.curation.negatives.rule_maker import Rules

__all__ = ["Filters", "Llm", "Made", "Rules", "make_negatives"]
