"""From a path to a checkpoint folder of this project."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlm.data.tokenizers import Tokenizer, clip_bpe, from_json, from_transformers
from vlm.errors import CheckpointError, ConfigError, OutputError, VlmError
from vlm.inference.checkpoint import DESCRIPTION, TOKENIZER, save_model
from vlm.inference.foreign import open_clip, transformers_clip, transformers_siglip
from vlm.inference.foreign.facts import Facts, Foreign, Given
from vlm.models import DualEncoder, ModelSpec, TransformersTextSpec, described
from vlm.models.activation import activations
from vlm.models.state_dict import require_fit

Reader = Callable[[Path, Facts], Foreign]

TRANSFORMERS: dict[str, Reader] = {"clip": transformers_clip.read, "siglip": transformers_siglip.read}
"""By the `model_type` of a folder's config.json."""

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


def import_model(source: Path, out: Path, given: Given) -> tuple[ModelSpec, list[tuple[str, str]]]:
    """Write a model from elsewhere as a checkpoint to the folder `out`.

    Args:
        source: a folder or a file of open_clip, or a folder of transformers.

    Returns:
        The model's description, and what should be looked at: names and values, for people.

    Raises:
        ConfigError: the source leaves something open or contradicts `given`, or `out` is not empty.
        CheckpointError: the source is unreadable, or a model that this project has no towers for.
    """
    out = out.absolute()  # "." has no name to make a draft's of
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"out={str(out)!r} is not empty; choose another folder")
    reader = _reader(source)
    facts = Facts(source, given)
    try:
        foreign = reader(source, facts)
    except VlmError:
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        # Files from elsewhere may lack or bend anything.
        raise CheckpointError(f"{source} is damaged or of another kind than it says: {error!r}") from error
    tokenizer = _tokenizer(source, given, foreign)
    spec = _complete(foreign, tokenizer, source)
    model = described(spec)
    require_fit(model.state_dict(), foreign.weights, where=str(source))
    origin = {"from": str(source), "kind": foreign.kind}
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        save_model(
            draft,
            weights=foreign.weights,
            spec=model.spec,
            preprocess=foreign.preprocess,
            tokenizer=tokenizer,
            step=0,
            config={"import": origin},
        )
        draft.rename(out)  # complete or absent
    except (OSError, SafetensorError) as error:
        raise OutputError(f"out={out} cannot be written: {error}; nothing of it is left") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return model.spec, _worth_a_look(foreign, model)


def _worth_a_look(foreign: Foreign, model: DualEncoder) -> list[tuple[str, str]]:
    image, text, preprocess = model.spec.image, model.spec.text_tower, foreign.preprocess
    return [
        ("kind", foreign.kind),
        *((f"{name} activation", activations(tower)) for name, (tower, _) in model.towers().items()),
        ("image size", f"{image.image_size}, {preprocess.resize_mode}, {preprocess.interpolation}"),
        ("mean", str(list(image.mean))),
        ("std", str(list(image.std))),
        ("context length", str(text.context_length)),
        ("vocabulary", f"{text.vocab_size}, end of text {text.eot_id}"),
    ]


def _reader(source: Path) -> Reader:
    if source.is_file():
        return open_clip.read
    if not source.is_dir():
        raise CheckpointError(f"from={str(source)!r} does not exist; give a folder or a file of weights")
    if (source / DESCRIPTION).is_file() or (source / "checkpoints").is_dir():
        raise ConfigError(f"from={str(source)!r} is a checkpoint of this project already; use it as it is")
    if any((source / name).is_file() for name in open_clip.WEIGHTS):
        return open_clip.read
    content = _json(source / "config.json")
    if "architecture" in content:
        raise ConfigError(
            f"from={str(source)!r} is an image tower of timm; train with model.image.pretrained={source}"
        )
    kind = content.get("model_type")
    if kind in TRANSFORMERS:
        return TRANSFORMERS[kind]
    if (source / open_clip.CONFIG).is_file():
        return open_clip.read
    raise CheckpointError(
        f"from={str(source)!r} is no model that can be imported: no {open_clip.CONFIG}, no config.json "
        f"of transformers with model_type {' or '.join(TRANSFORMERS)}"
        + (f" (it has {kind!r})" if kind else "; of weights without either, give the file itself")
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tokenizer(source: Path, given: Given, foreign: Foreign) -> Tokenizer:
    context_length = foreign.spec.text_tower.context_length
    if given.tokenizer_path is not None:
        return _read_tokenizer(Path(given.tokenizer_path), context_length)
    folder = source if source.is_dir() else source.parent
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            f"{source} has no tokenizer; set tokenizer_path=FILE: bpe_simple_vocab_16e6.txt(.gz) for CLIP's, "
            "a tokenizer.json, or the folder of a transformers tokenizer"
        )
    return _read_tokenizer(folder, context_length)


def _read_tokenizer(path: Path, context_length: int) -> Tokenizer:
    if not path.exists():
        raise ConfigError(f"tokenizer_path={str(path)!r} does not exist; it names a file or a folder")
    if path.is_dir() and (path / TOKENIZER).is_file():
        path = path / TOKENIZER
    if path.is_dir():
        return from_transformers(path, context_length=context_length)
    if path.suffix == ".json":
        return from_json(path, context_length=context_length)
    return clip_bpe(path, context_length=context_length)


def _complete(foreign: Foreign, tokenizer: Tokenizer, source: Path) -> ModelSpec:
    """The spec with the tokenizer's end of text, once it is known to be the model's tokenizer."""
    text = foreign.spec.text_tower
    assert text.vocab_size is not None  # read off the weights
    if tokenizer.vocab_size > text.vocab_size:
        raise ConfigError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model of {source} a vocabulary of "
            f"{text.vocab_size}; set tokenizer_path=FILE to the model's own"
        )
    expected = tokenizer.vocab_size - 1 if foreign.eot_id == "largest" else foreign.eot_id
    if expected not in ("any", tokenizer.eot_id):
        raise ConfigError(
            f"the tokenizer ends a text with id {tokenizer.eot_id}, the model of {source} reads its vector "
            f"at id {expected}; set tokenizer_path=FILE to the model's own"
        )
    if isinstance(text, TransformersTextSpec):
        padding = tokenizer.id_of(foreign.pad_token) if foreign.pad_token else None
        if padding is not None:
            text = dataclasses.replace(text, options={**text.options, "pad_token_id": padding})
    return dataclasses.replace(foreign.spec, text=dataclasses.replace(text, eot_id=tokenizer.eot_id))
