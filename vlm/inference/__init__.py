"""Trained models in use, without Hydra and without Lightning."""

from vlm.inference.checkpoint import (
    TOKENIZER,
    Description,
    checkpoints_of,
    latest_checkpoint,
    load_weights,
    read_config,
    read_description,
    read_weights,
    save_model,
    verify,
    versions,
)
from vlm.inference.embed import Embedder, ImageEmbeddings
from vlm.inference.load import Loaded, load

__all__ = [
    "TOKENIZER",
    "Description",
    "Embedder",
    "ImageEmbeddings",
    "Loaded",
    "checkpoints_of",
    "latest_checkpoint",
    "load",
    "load_weights",
    "read_config",
    "read_description",
    "read_weights",
    "save_model",
    "verify",
    "versions",
]
