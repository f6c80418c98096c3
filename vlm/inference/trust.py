"""What the description of a checkpoint may not say: its digest does not tell who wrote it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.data import Preprocess
from vlm.errors import CheckpointError, ConfigError
from vlm.models import ModelSpec, TransformersTextSpec, described
from vlm.models.state_dict import require_fit

_LAST_STEP = 1 << 48
_DEPTHS = frozenset({"layers", "depth", "depths", "num_hidden_layers"})


def check_facts(content: Mapping[str, Any]) -> None:
    """Check the types of everything beside model and preprocessing.

    Raises:
        ValueError, KeyError: naming what is wrong.
    """
    for name, kinds in (("step", int), ("seed", int | None), ("versions", dict), ("data", dict | None)):
        if not isinstance(content[name], kinds) or isinstance(content[name], bool):
            raise ValueError(f"{name}={content[name]!r}")
    if not 0 <= content["step"] <= _LAST_STEP:
        raise ValueError(f"step={content['step']}")
    if not isinstance(content["files"], dict):
        raise ValueError(f"files={content['files']!r}")
    for name, written in content["files"].items():
        named = isinstance(written, dict) and {"bytes", "sha256"} <= written.keys()
        if Path(name).name != name or not named:
            raise ValueError(f"files.{name}={written!r}")


def check_self_contained(model: ModelSpec, preprocess: Preprocess) -> None:
    """A model as it was built needs no other file, no network and no key that is not set.

    Raises:
        ValueError: naming what it would need.
    """
    if model != model.without_pretrained():
        raise ValueError("pretrained is set, but the weights lie beside it")
    if model.text is not None and (model.text.vocab_size is None or model.text.eot_id is None):
        raise ValueError("model.text.vocab_size or model.text.eot_id is null")
    if isinstance(model.text, TransformersTextSpec) and "model_type" not in model.text.options:
        raise ValueError("model.text.options has no model_type, so it would be looked for elsewhere")
    if preprocess.image_size != model.image.image_size:
        raise ValueError(
            f"preprocess.image_size={preprocess.image_size}, "
            f"but model.image.image_size={model.image.image_size}"
        )


def require_buildable(spec: ModelSpec, weights: Mapping[str, Tensor], *, where: Path) -> None:
    """Build a model without its memory, and compare it with the weights.

    Args:
        where: the file of the description, for messages.

    Raises:
        CheckpointError: it cannot be built, or is another model than that of the weights.
    """
    num_elements = sum(value.numel() for value in weights.values())
    for key, number in _whole_numbers(spec.to_mapping(), "model"):
        # Such a width would exhaust the memory, and so many layers the patience, before anything is compared.
        if number > (len(weights) if key.rpartition(".")[2] in _DEPTHS else num_elements):
            raise CheckpointError(f"{where} says {key}={number}, more than the weights beside it can hold")
    try:
        own = described(spec).state_dict()
    except ConfigError as error:
        raise CheckpointError(f"{where} describes a model that cannot be built: {error}") from error
    require_fit(own, weights, where=str(where.parent))


def _whole_numbers(value: Any, key: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _whole_numbers(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _whole_numbers(inner, key)
    elif isinstance(value, int):
        yield key, value
