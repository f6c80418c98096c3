"""Trained models in use, without Hydra and without Lightning."""

from vlm.inference.captions import Captioned, pictures, read_captions, write_captions
from vlm.inference.checkpoint import (
    CONFIG,
    DESCRIPTION,
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
    run_of,
    save_model,
    save_weights,
    verify,
    versions,
)
from vlm.inference.decoding import Decoding
from vlm.inference.embed import CaptionLine, Embedder, ImageEmbeddings, Patterns, Pictures, TextEmbeddings
from vlm.inference.interpolate import Line, interpolate
from vlm.inference.load import Loaded, load, weights_file
from vlm.inference.rebuild import Rebuilt

__all__ = [
    "CONFIG",
    "DESCRIPTION",
    "EMA",
    "TOKENIZER",
    "WEIGHTS",
    "CaptionLine",
    "Captioned",
    "Decoding",
    "Description",
    "Embedder",
    "ImageEmbeddings",
    "Line",
    "Loaded",
    "Patterns",
    "Pictures",
    "Rebuilt",
    "TextEmbeddings",
    "check_buildable",
    "checkpoints_of",
    "interpolate",
    "latest_checkpoint",
    "load",
    "load_weights",
    "pictures",
    "read_captions",
    "read_config",
    "read_description",
    "read_tokenizer",
    "read_weights",
    "run_of",
    "save_model",
    "save_weights",
    "verify",
    "versions",
    "weights_file",
    "write_captions",
]
