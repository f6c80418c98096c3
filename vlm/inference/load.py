"""A trained model, ready for use, from its checkpoint alone."""

from pathlib import Path
from typing import NamedTuple

import torch

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer
from vlm.errors import CheckpointError, ConfigError
from vlm.inference.checkpoint import (
    DESCRIPTION,
    EMA,
    TOKENIZER,
    WEIGHTS,
    latest_checkpoint,
    load_weights,
    read_description,
    read_tokenizer,
    read_weights,
    verify,
)
from vlm.inference.contradictions import require_carried
from vlm.inference.trust import require_buildable
from vlm.models import DualEncoder, build_model

_FILES = {"model": WEIGHTS, "ema": EMA}


class Loaded(NamedTuple):
    """A model and what turns pictures and texts into its inputs."""

    model: DualEncoder
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    """None where the model has no text tower."""


def weights_file(weights: str) -> str:
    """The file of a checkpoint that holds `weights`, as `load` takes them.

    Raises:
        ConfigError: they are neither "model" nor "ema".
    """
    if weights not in _FILES:
        raise ConfigError(f"weights={weights} is not one of {', '.join(_FILES)}")
    return _FILES[weights]


def load(path: str | Path, *, weights: str = "model", device: str | torch.device = "cpu") -> Loaded:
    """Rebuild the model of a checkpoint folder, or of the last checkpoint of a run folder.

    The model is in evaluation mode, in fp32. Reading executes nothing and asks no network.

    Args:
        weights: "model", those of the last step, or "ema", their average over a run with `trainer.ema_decay`.

    Raises:
        ConfigError: `weights` is neither.
        CheckpointError: there is no checkpoint, or it is incomplete, damaged, or contradicts itself.
    """
    name = weights_file(weights)
    checkpoint = latest_checkpoint(path)
    description = read_description(checkpoint)
    if name == EMA and EMA not in description.files:
        raise CheckpointError(
            f"{checkpoint} has no {EMA}: its run had no trainer.ema_decay; take weights=model"
        )
    has_text = description.model.text is not None
    verify(checkpoint, (name, TOKENIZER) if has_text else (name,))
    require_carried(checkpoint / name, description.model, where=checkpoint / DESCRIPTION)
    tokenizer, tensors = read_tokenizer(checkpoint) if has_text else None, read_weights(checkpoint, name)
    require_buildable(description.model, tensors, where=checkpoint / DESCRIPTION)
    model = build_model(description.model)
    load_weights(model, tensors, where=str(checkpoint / name))
    return Loaded(model.to(device).eval(), description.preprocess, tokenizer)
