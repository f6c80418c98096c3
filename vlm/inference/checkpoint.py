"""The model in a checkpoint folder: safetensors and json, nothing that runs when it is read.

A run keeps its checkpoints as `<run>/checkpoints/step_00000100/`:

| file | what |
|---|---|
| `model.safetensors` | fp32 weights by parameter name |
| `model.json` | format, step, description of model and preprocessing, versions; written last |
| `tokenizer.json` | the tokenizer |
| `config.json` | the resolved configuration of the run, for people |

Training adds the state of its optimizer beside them.
"""

import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer
from vlm.errors import CheckpointError, ConfigError
from vlm.inference.contradictions import carried, require_carried
from vlm.models import ModelSpec
from vlm.models.state_dict import require_fit

FORMAT = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint says of its model."""

    step: int
    model: ModelSpec
    preprocess: Preprocess
    versions: dict[str, str]
    """Of the packages that wrote it."""


def save_model(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    step: int,
    config: Mapping[str, Any],
) -> None:
    """Write what `load` needs into `folder`; on one rank.

    Args:
        weights: every parameter by its name in the model, whole on this rank; written as fp32.
        config: the resolved configuration of the run, plain data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned, as safetensors refuses tensors that share memory: tied embeddings do.
    whole = {
        name: value.detach().to("cpu", torch.float32).contiguous().clone() for name, value in weights.items()
    }
    save_file(whole, folder / WEIGHTS, metadata=carried(spec))
    tokenizer.save(folder / TOKENIZER)
    _write_json(folder / CONFIG, dict(config))
    description = {
        "format": FORMAT,
        "step": step,
        "model": spec.to_mapping(),
        "preprocess": preprocess.to_mapping(),
        "versions": versions(),
    }
    _write_json(folder / DESCRIPTION, description)


def latest_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder `path` itself, or the last complete one of the run folder `path`.

    Raises:
        CheckpointError: there is none; says what was found instead.
    """
    folder = Path(path)
    if (folder / DESCRIPTION).is_file():
        return folder
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a run folder or a checkpoint folder")
    found = sorted(
        (int(match[1]), child)
        for child in (folder / "checkpoints").glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", child.name)) and (child / DESCRIPTION).is_file()
    )
    if not found:
        names = ", ".join(sorted(child.name for child in folder.iterdir())[:NAMES_SHOWN]) or "nothing"
        raise CheckpointError(
            f"{folder} holds no checkpoint: neither {DESCRIPTION} nor checkpoints/step_*/{DESCRIPTION} "
            f"(it holds {names})"
        )
    return found[-1][1]


def read_description(checkpoint: Path) -> Description:
    """Read and check `model.json`. Raises `CheckpointError` where it cannot be understood."""
    path = checkpoint / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {content['format']}, this version of vlm reads {FORMAT}; "
                f"it was written by vlm {content.get('versions', {}).get('vlm', 'of unknown version')}"
            )
        description = Description(
            step=content["step"],
            model=ModelSpec.from_mapping(content["model"], key="model"),
            preprocess=Preprocess.from_mapping(content["preprocess"], key="preprocess"),
            versions=content["versions"],
        )
        require_carried(checkpoint / WEIGHTS, description.model, where=path)
        return description
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not the description of a model: {error}") from error


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The resolved configuration of the run. Raises `CheckpointError` where there is none."""
    path = checkpoint / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is incomplete") from error
    return config


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The fp32 weights by parameter name, on the CPU. Raises `CheckpointError` where the file is broken."""
    path = checkpoint / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is incomplete") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Copy `weights` into `model`, every one or none.

    Args:
        where: what the weights came from, for the message.

    Raises:
        CheckpointError: with a table of the names that are missing, unknown or of another shape.
    """
    require_fit(model.state_dict(), weights, where=where)
    model.load_state_dict(dict(weights))


def versions() -> dict[str, str]:
    """Versions of the packages that a model's numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("vlm", "torch", "timm")}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
