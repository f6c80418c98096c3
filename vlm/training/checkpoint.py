"""What training adds to a checkpoint: the optimizer's moments by parameter name, and the step."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vlm.errors import CheckpointError
from vlm.inference import Loaded, load_weights, read_description, read_weights, save_model

STATE = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""


def save(
    folder: Path,
    loaded: Loaded,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    config: Mapping[str, Any],
) -> None:
    """Write a checkpoint under another name, then rename it: `folder` is complete or absent."""
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_state(optimizer, loaded.model), draft / "optimizer.safetensors")
    save_model(
        draft,
        weights=loaded.model.state_dict(),
        spec=loaded.model.spec,
        preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer,
        step=step,
        config=config,
    )
    for path in draft.iterdir():
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    _flush(folder.parent)


def load_step(checkpoint: Path) -> int:
    """Number of optimizer steps taken when `checkpoint` was written."""
    return read_description(checkpoint).step


def load_weights_into(model: nn.Module, checkpoint: Path) -> None:
    """Replace the weights of `model` by those of `checkpoint`."""
    load_weights(model, read_weights(checkpoint), where=str(checkpoint))


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, checkpoint: Path) -> None:
    """Replace the moments of `optimizer` by those of `checkpoint`.

    Raises:
        CheckpointError: there is no such file, or it holds a parameter that the model lacks.
    """
    path = checkpoint / "optimizer.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} has no optimizer.safetensors; it can be evaluated, not resumed")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; resume from an earlier checkpoint") from error
    for name, parameter in model.named_parameters():
        state = {entry: stored.pop(f"{entry}/{name}") for entry in STATE if f"{entry}/{name}" in stored}
        if state:  # a parameter that never had a gradient has none
            optimizer.state[parameter] = {k: _placed(v, parameter) for k, v in state.items()}
    if stored:
        raise CheckpointError(
            f"{path} has {next(iter(stored))}, which this model does not; it is another model"
        )


def _state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{entry}/{names[parameter]}": state[entry].detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for entry in STATE
    }


def _placed(state: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """On the parameter's device, a moment also in its memory layout, which fused optimizers rely on."""
    if state.shape != parameter.shape:
        return state.to(parameter.device)
    return torch.empty_like(parameter).copy_(state)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
