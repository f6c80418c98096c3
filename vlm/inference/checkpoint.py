"""The model in a checkpoint folder: safetensors and json, nothing that runs when it is read.

A run keeps its checkpoints as `<run>/checkpoints/step_00000100/`:

| file | what |
|---|---|
| `model.safetensors` | fp32 weights by parameter name |
| `model.json` | what the model is, where it comes from, and the hashes of the other files; written last |
| `ema.safetensors` | their average over the run, in the same form; only of a run with `trainer.ema_decay` |
| `tokenizer.json` | the tokenizer, where there is a text tower |
| `config.json` | the resolved configuration of the run, for people |

Training adds the state of its optimizer, and later the scores of an evaluation. All but the scores is checked
when it is read: `model.json` against its own digest and against `config.json`, the other files against their
hashes.
"""

import hashlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer
from vlm.errors import CheckpointError, ConfigError, DataError
from vlm.inference.contradictions import carried, require_carried, require_configured
from vlm.inference.trust import check_facts, check_self_contained, require_buildable
from vlm.models import ModelSpec
from vlm.models.state_dict import require_fit

FORMAT = 2
WEIGHTS = "model.safetensors"
EMA = "ema.safetensors"
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
    """Of the packages that wrote it, and of the project's code where it ran from a checkout."""
    seed: int | None
    """All the random state of a run: its numbers are drawn anew for each (seed, step, rank)."""
    data: dict[str, Any] | None
    """Fingerprint of the shards trained on, by source."""
    files: dict[str, dict[str, Any]]
    """`bytes` and `sha256` of each file of the checkpoint."""


def save_model(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    preprocess: Preprocess,
    tokenizer: Tokenizer | None,
    step: int,
    config: Mapping[str, Any],
    seed: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Write what `load` needs into `folder`; on one rank. Files that are there already become part of it.

    Args:
        weights: every parameter by its name in the model, whole on this rank; written as fp32.
        config: the resolved configuration of the run, plain data; empty for weights from elsewhere.
        seed: of the run that made the weights.
        data: fingerprint of what it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, weights, spec)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
    _write_json(folder / CONFIG, dict(config))
    description = {
        "format": FORMAT,
        "step": step,
        "model": spec.to_mapping(),
        "preprocess": preprocess.to_mapping(),
        "versions": versions(),
        "seed": seed,
        "data": data,
        "files": {path.name: _fingerprint(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    _write_json(folder / DESCRIPTION, {**description, "digest": _digest(description)})


def save_weights(path: Path, weights: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """Write weights by parameter name as fp32, with the description of their model."""
    # Cloned, as safetensors refuses tensors that share memory: tied embeddings do.
    whole = {
        name: value.detach().to("cpu", torch.float32).contiguous().clone() for name, value in weights.items()
    }
    save_file(whole, path, metadata=carried(spec))


def verify(checkpoint: Path, names: Iterable[str] | None = None) -> None:
    """Compare files of a checkpoint, all of them unless `names` says which, with what was written.

    Raises:
        CheckpointError: naming the first file that is missing, truncated or altered.
    """
    files = read_description(checkpoint).files
    for name in files if names is None else names:
        path, written = checkpoint / name, files.get(name)
        if written is None:
            raise CheckpointError(f"{checkpoint / DESCRIPTION} does not list {name}, which belongs to it")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; the checkpoint is incomplete")
        size = path.stat().st_size
        if size != written["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, not the {written['bytes']} that were written")
        if _sha256(path) != written["sha256"]:
            raise CheckpointError(f"{path} was altered: its sha256 is not that of the file that was written")


def run_of(checkpoint: Path) -> Path:
    """The folder of its run, or its own where it stands alone."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run folder by step, whole or damaged: one has its name only once it is written."""
    found = (
        (int(match[1]), child)
        for child in (run / "checkpoints").glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", child.name))
    )
    return [child for _, child in sorted(found)]


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
    found = [path for path in checkpoints_of(folder) if (path / DESCRIPTION).is_file()]
    if not found:
        names = ", ".join(sorted(child.name for child in folder.iterdir())[:NAMES_SHOWN]) or "nothing"
        raise CheckpointError(
            f"{folder} holds no checkpoint: neither {DESCRIPTION} nor checkpoints/step_*/{DESCRIPTION} "
            f"(it holds {names})"
        )
    return found[-1]


def read_description(checkpoint: Path) -> Description:
    """Read and check `model.json`.

    Raises:
        CheckpointError: it cannot be understood, contradicts `config.json`, or was altered.
    """
    path = checkpoint / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {content['format']}, this version of vlm reads {FORMAT}; "
                f"it was written by vlm {_mapping(content.get('versions')).get('vlm', 'of unknown version')}"
            )
        digest = content.pop("digest")
        check_facts(content)
        description = Description(
            step=content["step"],
            model=ModelSpec.from_mapping(content["model"], key="model"),
            preprocess=Preprocess.from_mapping(content["preprocess"], key="preprocess"),
            versions=content["versions"],
            seed=content["seed"],
            data=content["data"],
            files=content["files"],
        )
        check_self_contained(description.model, description.preprocess)
        require_carried(checkpoint / WEIGHTS, description.model, where=path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} is not the description of a model: {error} is missing") from error
    except (ValueError, TypeError, OverflowError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path} is not the description of a model: {error}") from error
    _refuse_contradictions(path, content, read_config(checkpoint))
    if digest != _digest(content):
        raise CheckpointError(f"{path} was altered after it was written: its digest does not fit its content")
    return description


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The resolved configuration of the run. Raises `CheckpointError` where there is none."""
    path = checkpoint / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is incomplete") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not a configuration")
    return config


def read_weights(checkpoint: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    """The fp32 weights by parameter name, on the CPU. Raises `CheckpointError` where the file is broken."""
    path = checkpoint / name
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is incomplete") from error
    for parameter, value in weights.items():
        if not value.is_floating_point():
            raise CheckpointError(
                f"{path} holds {parameter} as {value.dtype}; weights are floating-point numbers"
            )
    return weights


def check_buildable(checkpoint: Path) -> None:
    """Compare the model of a checkpoint with the shapes of its weights; neither takes memory.

    Raises:
        CheckpointError: the model cannot be built, or is another than that of the weights.
    """
    try:
        with safe_open(checkpoint / WEIGHTS, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint / WEIGHTS} cannot be read ({error}); the checkpoint is incomplete"
        ) from error
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    require_buildable(read_description(checkpoint).model, weights, where=checkpoint / DESCRIPTION)


def read_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint. Raises `CheckpointError` where the model cannot read its ids."""
    path, text = checkpoint / TOKENIZER, read_description(checkpoint).model.text_tower
    try:
        tokenizer = Tokenizer.load(path)
    except (DataError, ConfigError) as error:
        named = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise CheckpointError(f"{named}; the checkpoint is incomplete") from error
    for what, found, expected, fits in (
        ("vocab_size", tokenizer.vocab_size, text.vocab_size, tokenizer.vocab_size <= (text.vocab_size or 0)),
        ("eot_id", tokenizer.eot_id, text.eot_id, tokenizer.eot_id == text.eot_id),
        (
            "context_length",
            tokenizer.context_length,
            text.context_length,
            tokenizer.context_length <= text.context_length,
        ),
    ):
        if not fits:
            raise CheckpointError(
                f"{path} has {what}={found}, {DESCRIPTION} beside it model.text.{what}={expected}; "
                "it is the tokenizer of another model"
            )
    return tokenizer


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
    """Versions of the packages that a model's numbers depend on, and the commit of a checkout."""
    packages = {name: importlib.metadata.version(name) for name in ("vlm", "torch", "timm")}
    commit = _commit()
    return packages | ({"commit": commit} if commit else {})


@cache
def _commit() -> str:
    """Commit of the checkout that this code runs from, marked where it has changes; empty elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _refuse_contradictions(path: Path, content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """What `model.json` says of model and preprocessing must be what the run was configured to make."""
    configured = {
        "model": config.get("model") or {},
        "preprocess": _mapping(config.get("data")).get("preprocess") or {},
    }
    require_configured(content, configured, where=path, config=path.with_name(CONFIG))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
