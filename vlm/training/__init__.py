"""Training: Lightning runs it, and nothing outside this package and the commands knows Lightning."""

from vlm.training.loggers import CsvLogger, TensorBoardLogger
from vlm.training.optimizer import AdamW
from vlm.training.plan import plan
from vlm.training.recipe import CheckpointEvery, EvaluateEvery, Run, Trainer
from vlm.training.run import train
from vlm.training.schedule import CosineSchedule

__all__ = [
    "AdamW",
    "CheckpointEvery",
    "CosineSchedule",
    "CsvLogger",
    "EvaluateEvery",
    "Run",
    "TensorBoardLogger",
    "Trainer",
    "plan",
    "train",
]
