"""Trained models in use, without Hydra and without Lightning."""

from vlm.inference.checkpoint import (
    TOKENIZER,
    Description,
    latest_checkpoint,
    load_weights,
    read_config,
    read_description,
    read_weights,
    save_model,
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
    "latest_checkpoint",
    "load",
    "load_weights",
    "read_config",
    "read_description",
    "read_weights",
    "save_model",
    "versions",
]
