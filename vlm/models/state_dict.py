"""Weights in files of other projects, read without running anything, and whether they fit a model."""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlm.errors import CheckpointError

# Where trainers put the weights, the averaged ones first, as timm reads them.
_WEIGHTS_OF_A_TRAINER = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # of data-parallel training and of torch.compile
_ROWS_SHOWN = 24


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights by name of a safetensors file, a state dict or a trainer's checkpoint, on the CPU.

    Raises:
        CheckpointError: the file is unreadable, holds no weights, or more than weights and plain data.
    """
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _weights_in(_unpickle(path), path)
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def mismatches(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """Names whose shapes differ, as rows of name, shape in the model, shape in the weights."""
    rows = []
    for name in sorted(own.keys() | weights.keys()):
        inside = str(tuple(own[name].shape)) if name in own else "not in the model"
        found = str(tuple(weights[name].shape)) if name in weights else "missing"
        if inside != found:
            rows.append((name, inside, found))
    return rows


def require_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, where: str) -> None:
    """Check that `weights` are those of a model whose state is `own`.

    Args:
        where: what the weights came from, for the message.

    Raises:
        CheckpointError: with a table of the names that are missing, not in the model or of another shape.
    """
    rows = mismatches(own, weights)
    if rows:
        listed = table(("parameter", "in the model", "in the weights"), rows)
        raise CheckpointError(f"the weights of {where} do not fit the model:\n{listed}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows below a header, in columns; of many rows the first."""
    texts = [[str(cell) for cell in row] for row in rows]
    cells = [header, *texts[:_ROWS_SHOWN]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    more = len(texts) - _ROWS_SHOWN
    return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "weights_only" in str(error):  # torch names what it refused, on many lines
            raise CheckpointError(
                f"{path} holds more than tensors, numbers and texts, and is not opened: such a file can run "
                "code; where you trust it, write its weights alone, "
                "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
            ) from error
        raise CheckpointError(f"{path} is damaged or no file of torch.save: {_first_line(error)}") from error
    except Exception as error:
        # A file that is no pickle at all fails with whatever the first bytes happen to mean.
        raise CheckpointError(f"{path} is damaged or no file of torch.save: {_first_line(error)}") from error


def _weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    key = next((key for key in _WEIGHTS_OF_A_TRAINER if _is_mapping(content, key)), None)
    weights = content if key is None else content[key]
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path} holds a {type(weights).__name__}, not weights by name")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            keys = ", ".join(map(str, list(content)[:8]))
            raise CheckpointError(
                f"{path} holds no weights by name: {name!r} is a {type(value).__name__} (it holds {keys})"
            )
    return {str(name): value for name, value in weights.items()}


def _is_mapping(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
