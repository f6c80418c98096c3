"""Damaged checkpoints, forged ones, and the other files of a run."""

import copy
import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fuzz import damage
from fuzz.case import CANARY, Case
from fuzz.commands import EVALUATE, LOAD, RESUME
from fuzz.world import BEFORE, LAST, RUN, change_sample, members

FILES = ("model.safetensors", "optimizer.safetensors", "model.json", "tokenizer.json", "config.json")
READ_BY_LOAD = ("model.safetensors", "model.json", "tokenizer.json", "config.json")

NUMBER = 21
FORGED = "step_00000003|run.resume=true, but the configuration has changed"

Content = dict[str, Any]
Change = Callable[[Content], None]


def cases() -> Iterator[Case]:
    for name in FILES:
        commands = (LOAD, RESUME) if name in READ_BY_LOAD else (RESUME,)
        for what, change in _BYTES.items():
            yield Case("checkpoint", f"{name}: {what}", _file(name, change), commands, name)
        yield Case("checkpoint", f"{name}: removed", _removed(name), commands, "step_00000003")
        yield Case("checkpoint", f"{name}: a folder in its place", _folder(name), commands, "step_00000003")
    for what, damages in _TOGETHER.items():
        yield Case("checkpoint", what, damages, (LOAD, RESUME), "step_00000003")
    yield Case("checkpoint", "both of them cut off", _both, (RESUME,), "runs/done")
    yield Case(
        "checkpoint", "a draft and a half-deleted one beside them", _leftovers, (LOAD, RESUME), "runs/done"
    )
    yield Case("checkpoint", "an empty folder of a later step", _empty_later, (LOAD, RESUME), "runs/done")
    for what, change in _ALTERED.items():
        yield Case("checkpoint", f"model.json: {what}, not signed", _altered(change), (LOAD,), "model.json")
    for what, change in _FORGED.items():
        yield Case("forged checkpoint", what, _forged(change), (LOAD, RESUME), FORGED)
    for what, forge in _FORGED_FILES.items():
        yield Case("forged checkpoint", what, forge, (LOAD, RESUME), FORGED)
    for what, suite in _SUITES.items():
        yield Case("forged checkpoint", f"a suite that {what}", _suite(suite), (EVALUATE,), "config.json")
    for name, what, text in _OF_THE_RUN:
        yield Case("run folder", f"{name}: {what}", _run_file(name, text), (RESUME, EVALUATE), name)


def _file(name: str, change: damage.Bytes):
    return lambda folder, rng: damage.rewrite(folder / LAST / name, change, rng)


def _removed(name: str):
    return lambda folder, rng: (folder / LAST / name).unlink()


def _folder(name: str):
    def do(folder: Path, rng: Random) -> None:
        (folder / LAST / name).unlink()
        (folder / LAST / name).mkdir()

    return do


def _run_file(name: str, text: bytes):
    def do(folder: Path, rng: Random) -> None:
        (folder / RUN / name).write_bytes(text)
        # a sample that the list of broken ones has to take
        change_sample(folder, NUMBER, {**members(NUMBER), "png": b"no image"})

    return do


def _from_before(name: str):
    def do(folder: Path, rng: Random) -> None:
        (folder / LAST / name).write_bytes((folder / BEFORE / name).read_bytes())

    return do


def _exchanged(folder: Path, rng: Random) -> None:
    one, other = folder / LAST / "model.safetensors", folder / LAST / "optimizer.safetensors"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


class Code:
    """Pickled, it writes a file where it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (CANARY, "w")


def _pickled(folder: Path, rng: Random) -> None:
    (folder / LAST / "model.safetensors").write_bytes(pickle.dumps({"weights": Code()}))


def _torch_saved(folder: Path, rng: Random) -> None:
    torch.save({"state_dict": Code()}, folder / LAST / "model.safetensors")


def _both(folder: Path, rng: Random) -> None:
    for checkpoint in (LAST, BEFORE):
        damage.rewrite(folder / checkpoint / "model.safetensors", damage.cut, rng)


def _leftovers(folder: Path, rng: Random) -> None:
    for name in (".step_00000004.tmp", ".step_00000001.old"):
        (folder / RUN / "checkpoints" / name).mkdir()


def _empty_later(folder: Path, rng: Random) -> None:
    (folder / RUN / "checkpoints/step_00000004").mkdir()


def _altered(change: Change):
    def do(folder: Path, rng: Random) -> None:
        path = folder / LAST / "model.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return do


def sign(checkpoint: Path, content: Content) -> None:
    """Make the hashes and the digest right, as a stranger could who wrote the checkpoint."""
    files = content.get("files")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors"):
        if isinstance(files, dict) and isinstance(files.get(name), dict) and "sha256" in files[name]:
            data = (checkpoint / name).read_bytes()
            files[name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content.pop("digest", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "model.json").write_text(json.dumps({**content, "digest": digest}))


def _forged(change: Change):
    """Every file agrees with the change, and everything is signed."""

    def do(folder: Path, rng: Random) -> None:
        checkpoint = folder / LAST
        content = json.loads((checkpoint / "model.json").read_text())
        config = json.loads((checkpoint / "config.json").read_text())
        told = {
            **copy.deepcopy(content),
            "model": config["model"],
            "preprocess": config["data"]["preprocess"],
        }
        change(content)
        change(told)
        config["model"], config["data"]["preprocess"] = told.get("model"), told.get("preprocess")
        (checkpoint / "config.json").write_text(json.dumps(config))
        weights = load_file(checkpoint / "model.safetensors")
        carried = json.dumps(content.get("model"), sort_keys=True)
        save_file(weights, checkpoint / "model.safetensors", metadata={"model": carried})
        sign(checkpoint, content)

    return do


def _set(path: str, value: Any) -> Change:
    def change(content: Content) -> None:
        *parents, last = path.split(".")
        for name in parents:
            content = content[name]
        content[last] = copy.deepcopy(value)

    return change


def _without(name: str) -> Change:
    return lambda content: content.pop(name)


def _with_file(name: str, change: Callable[[Path, Random], None]):
    def do(folder: Path, rng: Random) -> None:
        checkpoint = folder / LAST
        change(checkpoint / name, rng)
        sign(checkpoint, json.loads((checkpoint / "model.json").read_text()))

    return do


def _text(text: str):
    return lambda path, rng: path.write_text(text)


def _tokenizer(change: Change):
    def do(path: Path, rng: Random) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return do


def _larger_vocabulary(content: Content) -> None:
    vocab = content["model"]["vocab"]
    vocab["zzzz"] = 10**6


def _config(change: Change):
    def do(path: Path, rng: Random) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return do


def _weights(change: Callable[[dict[str, torch.Tensor]], None]):
    def do(path: Path, rng: Random) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata=metadata)

    return do


def _as_type(kind: torch.dtype):
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name, value in weights.items():
            weights[name] = value.to(kind)

    return change


def _first_reshaped(weights: dict[str, torch.Tensor]) -> None:
    name = sorted(weights)[0]
    weights[name] = weights[name].flatten()[:1].clone()


def _header(length: int, text: bytes):
    def do(path: Path, rng: Random) -> None:
        path.write_bytes(struct.pack("<Q", length) + text)

    return do


def _suite(suite: object):
    def do(folder: Path, rng: Random) -> None:
        checkpoint = folder / LAST
        config = json.loads((checkpoint / "config.json").read_text())
        config["suite"] = copy.deepcopy(suite)
        (checkpoint / "config.json").write_text(json.dumps(config))
        sign(checkpoint, json.loads((checkpoint / "model.json").read_text()))

    return do


def _evaluator(**changes: Any) -> dict[str, Any]:
    classes = {
        "_target_": "vlm.evaluation.ClassesFromJson",
        "path": "eval/classes.json",
        "name": "name",
        "label": "id",
    }
    whole = {
        "_target_": "vlm.evaluation.ZeroShot",
        "shards": "eval/*.tar",
        "classes": classes,
        "label": "cls",
        "templates": "eval/templates.txt",
    }
    return {"evaluators": {"colours": {**whole, **changes}}}


_BYTES: dict[str, damage.Bytes] = {
    "cut off": damage.cut,
    "empty": damage.empty,
    "eight wrong bits": damage.flipped,
    "random bytes": damage.garbage,
    "zeros": damage.zeros,
}

_TOGETHER = {
    "weights of an earlier step": _from_before("model.safetensors"),
    "model.json of an earlier step": _from_before("model.json"),
    "weights and optimizer exchanged": _exchanged,
    "a pickle that would run code in place of the weights": _pickled,
    "a file of torch.save that would run code in place of the weights": _torch_saved,
}

_ALTERED: dict[str, Change] = {
    "another step": _set("step", 2),
    "another activation": _set("model.text.activation", "quick_gelu"),
    "another mean": _set("model.image.mean", [0.1, 0.2, 0.3]),
    "another way to resize": _set("preprocess.resize_mode", "squash"),
    "another seed": _set("seed", 7),
    "another hash of a file": lambda content: content["files"]["model.safetensors"].update(sha256="0" * 64),
    "no digest": _without("digest"),
    "another format": _set("format", 99),
    "a format that is a list": _set("format", [2]),
}

_OPTIONS = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}

_FORGED: dict[str, Change] = {
    **{
        f"without {name}": _without(name)
        for name in ("step", "model", "preprocess", "versions", "seed", "data", "files")
    },
    "step: a text": _set("step", "four"),
    "step: negative": _set("step", -1),
    "step: 10^30": _set("step", 10**30),
    "step: a fraction": _set("step", 4.5),
    "seed: a text": _set("seed", "zero"),
    "versions: a list": _set("versions", ["vlm"]),
    "data: a list": _set("data", [1]),
    "data: other shards": _set("data", {"data.train": {"shards": 1, "samples": 2, "sha256": "0"}}),
    "files: a list": _set("files", ["model.safetensors"]),
    "files: names without hashes": _set("files", dict.fromkeys(FILES)),
    "files: hashes that are numbers": _set("files", dict.fromkeys(FILES, 7)),
    "files: a path out of the folder": lambda content: content["files"].update(
        {"../../../../../../etc/passwd": {"bytes": 1, "sha256": "0"}}
    ),
    "model: a list": _set("model", []),
    "model.embed_dim: a text": _set("model.embed_dim", "8"),
    "model.embed_dim: 10^15": _set("model.embed_dim", 10**15),
    "model.embed_dim: another": _set("model.embed_dim", 16),
    "model.init_logit_scale: 10^400": _set("model.init_logit_scale", 10**400),
    "model.image.name: of a hub": _set("model.image.name", "hf-hub:stranger/model"),
    "model.image.name: a path": _set("model.image.name", "local-dir:/tmp"),
    "model.image.pretrained: a file": _set("model.image.pretrained", "/etc/passwd"),
    "model.image.options: a checkpoint to be read": _set(
        "model.image.options", {**_OPTIONS, "checkpoint_path": "x.pt"}
    ),
    "model.image.options: a layer that is code": _set(
        "model.image.options", {**_OPTIONS, "norm_layer": "os.system"}
    ),
    "model.image.options: a depth of 10^9": _set(
        "model.image.options", {**_OPTIONS, "depth": 10**9}
    ),
    "model.image.image_size: 10^6": _set("model.image.image_size", 10**6),
    "model.image.std: 0": _set("model.image.std", [0.0, 0.0, 0.0]),
    "model.image.mean: NaN": _set("model.image.mean", [float("nan")] * 3),
    "model.text.layers: 10^9": _set("model.text.layers", 10**9),
    "model.text.context_length: 10^12": _set("model.text.context_length", 10**12),
    "model.text.context_length: shorter than the tokenizer's": _set("model.text.context_length", 4),
    "model.text.vocab_size: null": _set("model.text.vocab_size", None),
    "model.text.eot_id: another": _set("model.text.eot_id", 5),
    "model.text.kind: unknown": _set("model.text.kind", "rnn"),
    "model.text: an encoder of a hub": _set(
        "model.text",
        {
            "kind": "transformers", "name": "stranger/model", "pretrained": False, "pooling": "eot",
            "context_length": 16, "vocab_size": 300, "eot_id": 2, "options": {},
        },
    ),
    "model.text: an encoder with code of its own": _set(
        "model.text",
        {
            "kind": "transformers", "name": "stranger/model", "pretrained": False, "pooling": "eot",
            "context_length": 16, "vocab_size": 300, "eot_id": 2,
            "options": {"model_type": "bert", "auto_map": {"AutoModel": "code.Model"}},
        },
    ),
    "preprocess: a list": _set("preprocess", []),
    "preprocess.image_size: a text": _set("preprocess.image_size", "16"),
    "preprocess.image_size: 10^9": _set("preprocess.image_size", 10**9),
    "preprocess.image_size: not that of the model": _set("preprocess.image_size", 32),
    "preprocess.background: texts": _set("preprocess.background", ["a", "b", "c"]),
    "preprocess.interpolation: a number": _set("preprocess.interpolation", 3),
    "preprocess: an unknown key": _set("preprocess.rotate", 90),
}  # fmt: skip

_FORGED_FILES = {
    "config.json: a list": _with_file("config.json", _text("[]")),
    "config.json: nested 100,000 deep": _with_file("config.json", _text("[" * 100_000)),
    "config.json: data that are a text": _with_file("config.json", _config(_set("data", "x"))),
    "config.json: a model that is a text": _with_file("config.json", _config(_set("model", "x"))),
    "config.json: without paths": _with_file("config.json", _config(_without("paths"))),
    "tokenizer.json: a list": _with_file("tokenizer.json", _text("[]")),
    "tokenizer.json: nested 100,000 deep": _with_file("tokenizer.json", _text("[" * 100_000)),
    "tokenizer.json: without a context length": _with_file(
        "tokenizer.json", _tokenizer(_set("truncation", None))
    ),
    "tokenizer.json: without an end of text": _with_file(
        "tokenizer.json", _tokenizer(_set("post_processor", None))
    ),
    "tokenizer.json: ids beyond the model's vocabulary": _with_file(
        "tokenizer.json", _tokenizer(_larger_vocabulary)
    ),
    "tokenizer.json: a context length of 10^12": _with_file(
        "tokenizer.json", _tokenizer(_set("truncation.max_length", 10**12))
    ),
    "tokenizer.json: a context longer than the model's": _with_file(
        "tokenizer.json", _tokenizer(_set("truncation.max_length", 64))
    ),
    "model.safetensors: a parameter too few": _with_file(
        "model.safetensors", _weights(lambda w: w.popitem())
    ),
    "model.safetensors: a parameter too many": _with_file(
        "model.safetensors", _weights(lambda w: w.update(more=torch.zeros(3)))
    ),
    "model.safetensors: a parameter of another shape": _with_file(
        "model.safetensors", _weights(_first_reshaped)
    ),
    "model.safetensors: weights that are whole numbers": _with_file(
        "model.safetensors", _weights(_as_type(torch.int64))
    ),
    "model.safetensors: weights of bfloat16": _with_file(
        "model.safetensors", _weights(_as_type(torch.bfloat16))
    ),
    "model.safetensors: weights of complex numbers": _with_file(
        "model.safetensors", _weights(_as_type(torch.complex64))
    ),
    "model.safetensors: a header of 2^60 bytes": _with_file("model.safetensors", _header(2**60, b"{}")),
    "model.safetensors: a header that is no json": _with_file("model.safetensors", _header(8, b"notjson!")),
    "model.safetensors: a tensor of 2^50 elements": _with_file(
        "model.safetensors",
        _header(
            72, b'{"a":{"dtype":"F32","shape":[1125899906842624],"data_offsets":[0,4]}}'.ljust(72) + b"1234"
        ),
    ),
    "optimizer.safetensors: moments of another shape": _with_file(
        "optimizer.safetensors", _weights(_first_reshaped)
    ),
    "optimizer.safetensors: a parameter too few": _with_file(
        "optimizer.safetensors", _weights(lambda w: w.popitem())
    ),
    "optimizer.safetensors: no parameter at all": _with_file(
        "optimizer.safetensors", _weights(lambda w: w.clear())
    ),
    "optimizer.safetensors: moments of whole numbers": _with_file(
        "optimizer.safetensors", _weights(_as_type(torch.int64))
    ),
}

_SUITES: dict[str, object] = {
    "names a function of Python": {
        "evaluators": {"colours": {"_target_": "builtins.open", "file": CANARY, "mode": "w"}}
    },
    "names a function through a module of vlm": {
        "evaluators": {"colours": {"_target_": "vlm.files.os.mkdir", "path": CANARY}}
    },
    "names a function within an evaluator": _evaluator(
        classes={"_target_": "builtins.open", "file": CANARY, "mode": "w"}
    ),
    "reads a pipe": _evaluator(shards=f"pipe:touch {CANARY}"),
    "reads a pipe among other shards": _evaluator(shards=["eval/*.tar", f"pipe:touch {CANARY}"]),
    "reads the environment": _evaluator(shards="${oc.env:HOME}/*.tar"),
    "is a list": ["colours"],
    "has an evaluator without a class": {"evaluators": {"colours": {"shards": "eval/*.tar"}}},
    "has a misspelt key": _evaluator(shard="eval/*.tar"),
    "has numbers in place of texts": _evaluator(label=7),
}

_OF_THE_RUN: list[tuple[str, str, bytes]] = [
    ("metrics.csv", "random bytes", b"\x93\x00\xff\xfe\x11\n\x00,,"),
    ("metrics.csv", "without the column step", b"loss\n1\n2\n"),
    ("metrics.csv", "a step that is no number", b"step,train/loss\n1,2\nx,3\n2,y\n"),
    ("metrics.csv", "a step of 5,000 digits", b"step,train/loss\n" + b"9" * 5000 + b",3\n"),
    ("metrics.csv", "a row cut off", b"step,train/loss,train/lr\n1,2.0,0.1\n2,1."),
    ("metrics.csv", "rows of too many cells", b"step,train/loss\n1,2,3,4,5\n2,1,1,1,1\n"),
    ("broken_samples.csv", "other columns", b"a,b\n1,2\n"),
    ("broken_samples.csv", "no text", b"\x93\x00\xff\xfe\x11\n\x00,,\n"),
    ("tokenizer.json", "garbage", b"\x93\x00\xff\xfe"),
    ("config.json", "cut off", b'{"run": '),
]  # fmt: skip
