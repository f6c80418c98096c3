"""Where two descriptions of a model differ, and the description that weights carry with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from vlm.errors import CheckpointError, ConfigError
from vlm.models import ModelSpec
from vlm.models.state_dict import table

_MODEL = "model"
_ABSENT = "(not set)"

# A built model describes itself without these: weights are no longer fetched, a size may have been filled up.
_SETTLED_LATER = frozenset({"pretrained", "vocab_size", "eot_id"})


class Difference(NamedTuple):
    """A key, and its value in either description."""

    key: str
    one: Any
    other: Any


def carried(spec: ModelSpec) -> dict[str, str]:
    """The description of a model as metadata of its weights file.

    No shape tells an activation, a number of heads or a mean: weights that carry the description cannot be
    run under another one that lies beside them.
    """
    return {_MODEL: json.dumps(spec.to_mapping(), sort_keys=True)}


def require_carried(weights: Path, spec: ModelSpec, *, where: Path) -> None:
    """Compare `spec`, read from the file `where`, with what the weights carry.

    Raises:
        CheckpointError: they differ, with both values of every key; or the weights carry no description.
    """
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return  # reading the weights says what is wrong with the file
    if _MODEL not in metadata:
        raise CheckpointError(f"{weights} was replaced: it does not carry the description of its model")
    rows = differences(spec.to_mapping(), _parsed(metadata[_MODEL], weights))
    if rows:
        listed = table(("key", where.name, weights.name), rows)
        raise CheckpointError(
            f"{where} does not describe the weights beside it; one of the files was altered or replaced:\n"
            f"{listed}"
        )


def require_configured(
    described: Mapping[str, Any], configured: Mapping[str, Any], *, where: Path, config: Path
) -> None:
    """Compare descriptions by name, read from `where`, with what the run was configured to make.

    Values that were left to the tokenizer or to the library do not count.

    Raises:
        CheckpointError: they differ, with both values of every key.
    """
    rows = [
        difference
        for difference in differences({name: described[name] for name in configured}, configured, key="")
        if _ABSENT not in difference
        and difference.other is not None
        and difference.key.rpartition(".")[2] not in _SETTLED_LATER
    ]
    if rows:
        listed = table(("key", where.name, config.name), rows)
        raise CheckpointError(
            f"{where} contradicts {config.name} beside it; one was changed after the checkpoint was written, "
            f"so neither is believed:\n{listed}"
        )


def _parsed(text: str, weights: Path) -> dict[str, Any]:
    try:
        found = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{weights} carries a damaged description of its model: {error}") from error
    try:
        return ModelSpec.from_mapping(
            found
        ).to_mapping()  # with what descriptions had not yet when it was made
    except ConfigError:
        return found  # the table of differences names what is wrong with it


def differences(one: Mapping[str, Any], other: Mapping[str, Any], *, key: str = "model") -> list[Difference]:
    """Where they differ; `key` is where both stand."""
    rows = []
    for name in [*one, *(name for name in other if name not in one)]:
        a, b = one.get(name, _ABSENT), other.get(name, _ABSENT)
        where = f"{key}.{name}" if key else name
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += differences(a, b, key=where)
        elif a != b:
            rows.append(Difference(where, a, b))
    return rows
