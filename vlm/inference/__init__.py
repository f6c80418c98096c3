"""Trained models in use, without Hydra and without Lightning."""

from vlm.inference.checkpoint import (
    CONFIG,
    EMA,
    TOKENIZER,
    WEIGHTS,
    Description,
    check_buildable,
    checkpoints_of,
    latest_checkpoint,
    load_weights,
    read_config,
    read_description,
    read_tokenizer,
    read_weights,
    save_model,
    save_weights,
    verify,
    versions,
)
from vlm.inference.decoding import Decoding
from vlm.inference.embed import Embedder, ImageEmbeddings
from vlm.inference.interpolate import Line, interpolate
from vlm.inference.load import Loaded, load

__all__ = [
    "CONFIG",
    "EMA",
    "TOKENIZER",
    "WEIGHTS",
    "Decoding",
    "Description",
    "Embedder",
    "ImageEmbeddings",
    "Line",
    "Loaded",
    "check_buildable",
    "checkpoints_of",
    "interpolate",
    "latest_checkpoint",
    "load",
    "load_weights",
    "read_config",
    "read_description",
    "read_tokenizer",
    "read_weights",
    "save_model",
    "save_weights",
    "verify",
    "versions",
]
