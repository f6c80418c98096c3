"""Where two descriptions of a model differ, and the description that weights carry with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlm.errors import CheckpointError
from vlm.models import ModelSpec
from vlm.models.state_dict import table

_MODEL = "model"
_ABSENT = "(not set)"


def carried(spec: ModelSpec) -> dict[str, str]:
    """The description of a model as metadata of its weights file.

    No shape tells an activation, a number of heads or a mean: weights that carry the description cannot be
    run under another one that lies beside them.
    """
    return {_MODEL: json.dumps(spec.to_mapping(), sort_keys=True)}


def require_carried(weights: Path, spec: ModelSpec, *, where: Path) -> None:
    """Compare `spec`, read from the file `where`, with what the weights carry; older files carry nothing.

    Raises:
        CheckpointError: they differ; both values of every key are named.
    """
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return  # reading the weights says what is wrong with the file
    if _MODEL not in metadata:
        return
    rows = differences(spec.to_mapping(), _parsed(metadata[_MODEL], weights))
    if rows:
        listed = table(("key", where.name, weights.name), rows)
        raise CheckpointError(
            f"{where} does not describe the weights beside it; one of the files was altered or replaced:\n"
            f"{listed}"
        )


def _parsed(text: str, weights: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{weights} carries a damaged description of its model: {error}") from error


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], *, key: str = "model"
) -> list[tuple[str, str, str]]:
    """Keys whose values differ, as rows of key, value in `one`, value in `other`."""
    rows = []
    for name in [*one, *(name for name in other if name not in one)]:
        a, b = one.get(name, _ABSENT), other.get(name, _ABSENT)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += differences(a, b, key=f"{key}.{name}")
        elif a != b:
            rows.append((f"{key}.{name}", str(a), str(b)))
    return rows
