"""All weights in one file that the safetensors library alone reads, and a folder that `vlm.load` reads."""

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file

from vlm.inference.checkpoint import WEIGHTS, read_description, read_tokenizer, save_model
from vlm.inference.export.opened import Opened
from vlm.inference.export.source import Source
from vlm.models import build_model


def kind_of(source: Source) -> str:
    """Every model has weights."""
    return "fp32 weights by parameter name"


def write(source: Source, folder: Path) -> None:
    """Write a checkpoint without what only training needs."""
    save_model(
        folder,
        weights=source.loaded.model.state_dict(),
        spec=source.loaded.model.spec,
        preprocess=source.preprocess,
        tokenizer=source.loaded.tokenizer,
        step=source.description.step,
        config=source.config,
        seed=source.description.seed,
        data=source.description.data,
    )


def open_folder(source: Source, folder: Path) -> Opened:
    """The weights as the safetensors library reads them, in a new model of the description beside them."""
    model = build_model(read_description(folder).model)
    model.load_state_dict(load_file(folder / WEIGHTS))
    model.eval()
    has_text = source.spec.text is not None
    tokenizer = read_tokenizer(folder) if has_text else None
    with torch.no_grad():
        return Opened(
            library=f"safetensors {safetensors.__version__}",
            image=model.encode_image,
            text=model.encode_text if has_text else None,
            tokens=None if tokenizer is None else (lambda texts: [tokenizer.encode(text) for text in texts]),
            eot_id=0 if tokenizer is None else tokenizer.eot_id,
            padding=0,
        )
