"""Many checkpoints on many data sets: cells that are computed once and kept."""

from vlm.evaluation.sweep.cache import CachedEmbedder, EmbeddingCache
from vlm.evaluation.sweep.candidates import Candidate, Candidates, OpenClip, find_candidates
from vlm.evaluation.sweep.cell import Cell
from vlm.evaluation.sweep.questions import Definition, Settings
from vlm.evaluation.sweep.run import Summary, sweep
from vlm.evaluation.sweep.table import write_table

__all__ = [
    "CachedEmbedder",
    "Candidate",
    "Candidates",
    "Cell",
    "Definition",
    "EmbeddingCache",
    "OpenClip",
    "Settings",
    "Summary",
    "find_candidates",
    "sweep",
    "write_table",
]
