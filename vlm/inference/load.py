"""A trained model, ready for use, from its checkpoint alone."""

from pathlib import Path
from typing import NamedTuple

import torch

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer
from vlm.inference.checkpoint import (
    DESCRIPTION,
    TOKENIZER,
    WEIGHTS,
    latest_checkpoint,
    load_weights,
    read_description,
    read_tokenizer,
    read_weights,
    verify,
)
from vlm.inference.trust import require_buildable
from vlm.models import DualEncoder, build_model


class Loaded(NamedTuple):
    """A model and what turns pictures and texts into its inputs."""

    model: DualEncoder
    preprocess: Preprocess
    tokenizer: Tokenizer


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Loaded:
    """Rebuild the model of a checkpoint folder, or of the last checkpoint of a run folder.

    The model is in evaluation mode, in fp32. Reading executes nothing and asks no network.

    Raises:
        CheckpointError: there is no checkpoint, or it is incomplete, damaged, or contradicts itself.
    """
    checkpoint = latest_checkpoint(path)
    description = read_description(checkpoint)
    verify(checkpoint, (WEIGHTS, TOKENIZER))
    tokenizer, weights = read_tokenizer(checkpoint), read_weights(checkpoint)
    require_buildable(description.model, weights, where=checkpoint / DESCRIPTION)
    model = build_model(description.model)
    load_weights(model, weights, where=str(checkpoint))
    return Loaded(model.to(device).eval(), description.preprocess, tokenizer)
