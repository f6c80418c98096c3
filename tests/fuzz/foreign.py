"""Damaged models of other projects."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file

from fuzz import damage
from fuzz.case import Case
from fuzz.checkpoints import Code
from fuzz.commands import IMPORT

TINY = Path(__file__).parents[1] / "inference/open_clip_tiny"
WEIGHTS, CONFIG = "foreign/open_clip_model.safetensors", "foreign/open_clip_config.json"


def cases() -> Iterator[Case]:
    for what, change in _BYTES.items():
        yield _case(
            f"weights: {what}", lambda folder, rng, c=change: damage.rewrite(folder / WEIGHTS, c, rng)
        )
        yield _case(
            f"open_clip_config.json: {what}", lambda f, rng, c=change: damage.rewrite(f / CONFIG, c, rng)
        )
    for what, content in _CONFIGS.items():
        yield _case(f"open_clip_config.json: {what}", lambda f, rng, c=content: (f / CONFIG).write_text(c))
    for what, (key, value) in _KEYS.items():
        yield _case(f"open_clip_config.json: {what}", lambda f, rng, k=key, v=value: _set(f / CONFIG, k, v))
    yield _case("a pickle that would run code", _pickled)
    yield _case("a file of torch.save that would run code", _torch_saved)
    yield _case("an index of parts that leads out of the folder", _parts)


def _case(what: str, do) -> Case:
    def change(folder: Path, rng: Random) -> None:
        (folder / "foreign").mkdir()
        for name in (WEIGHTS, CONFIG):
            shutil.copy(TINY / Path(name).name, folder / name)
        do(folder, rng)

    return Case("foreign model", what, change, (IMPORT,), "foreign|model.")


def _set(path: Path, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    place = content["model_cfg"]
    *parents, last = key.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(content))


def _as_bin(folder: Path) -> Path:
    (folder / WEIGHTS).unlink()
    return folder / "foreign/open_clip_pytorch_model.bin"


def _pickled(folder: Path, rng: Random) -> None:
    _as_bin(folder).write_bytes(pickle.dumps({"state_dict": Code()}))


def _torch_saved(folder: Path, rng: Random) -> None:
    weights = load_file(folder / WEIGHTS)
    torch.save({"state_dict": weights, "args": Code()}, _as_bin(folder))


def _parts(folder: Path, rng: Random) -> None:
    (folder / WEIGHTS).unlink()
    (folder / CONFIG).unlink()
    (folder / "foreign/config.json").write_text(json.dumps({"model_type": "clip"}))
    index = {"weight_map": {"a": "../../../etc/passwd"}}
    (folder / "foreign/model.safetensors.index.json").write_text(json.dumps(index))


_BYTES = {
    "cut off": damage.cut,
    "eight wrong bits": damage.flipped,
    "random bytes": damage.garbage,
    "empty": damage.empty,
}
_CONFIGS = {
    "a list": "[]",
    "nested 100,000 deep": "[" * 100_000,
    "NaN": "NaN",
}
_KEYS = {
    "an embed_dim that is a text": ("embed_dim", "large"),
    "an image size of 10^9": ("vision_cfg.image_size", 10**9),
    "a patch size of 0": ("vision_cfg.patch_size", 0),
    "10^9 layers": ("vision_cfg.layers", 10**9),
    "negative heads": ("text_cfg.heads", -1),
    "a tower of a hub with code": ("text_cfg.hf_model_name", "stranger/model"),
}
