"""Mistakes in recipes and on the command line."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from fuzz import damage
from fuzz.case import Case
from fuzz.commands import TRAIN, evaluate_with, shards_with, train_with

RECIPE = "recipes/experiment/base.yaml"


def cases() -> Iterator[Case]:
    for what, (text, names) in _RECIPES.items():
        yield Case("recipe", what, _recipe(text), (TRAIN,), names)
    for (old, new), names in _VALUES.items():
        yield Case("recipe", f"`{_short(new)}`", _value(old, new), (TRAIN,), names)
    for words, names in _TYPED.items():
        run = f"runs/{names}" if words[0].startswith("run.name") else "runs/new"
        yield Case(
            "command line", f"`train {' '.join(words)}`", _nothing, (train_with(*words, run=run),), names
        )
    for words, names in _EVALUATE.items():
        yield Case(
            "command line", f"`vlm evaluate {' '.join(words)}`", _nothing, (evaluate_with(*words),), names
        )
    for words, names in _SHARDS.items():
        what = f"`vlm shards {' '.join(words)}`"
        yield Case("command line", what, _nothing, (shards_with(*words),), names)


def _short(text: str) -> str:
    """What of a change stands in the table."""
    last = text.strip().splitlines()[-1].strip()
    return last if len(last) < 80 else f"{last[:40]}… ({len(last)} characters)"


def _nothing(folder: Path, rng: Random) -> None:
    """The input is the command itself."""


def _recipe(text: bytes):
    def do(folder: Path, rng: Random) -> None:
        path = folder / RECIPE
        path.write_bytes(text if b"{recipe}" not in text else text.replace(b"{recipe}", path.read_bytes()))

    return do


def _value(old: str, new: str):
    def do(folder: Path, rng: Random) -> None:
        damage.replace(folder / RECIPE, old, new)

    return do


_RECIPES: dict[str, tuple[bytes, str]] = {
    "no UTF-8": (b"{recipe}\n# \xff\xfe\n", "recipes/experiment/base.yaml"),
    "random bytes": (bytes(range(1, 200)), "recipes/experiment/base.yaml"),
    "empty": (b"", "@package"),
    "a list": (b"- run\n- data\n", "base"),
    "a text": (b"just words", "base"),
    "tabs": (b"{recipe}\nrun:\n\tname: x\n", "base"),
    "a bracket that nobody closes": (b"{recipe}\nrun: {name: x\n", "base"),
    "a key twice": (b"{recipe}\nrun:\n  name: other\n", "run"),
    "a tag that runs code": (b"{recipe}\nlogger: !!python/object/apply:builtins.open [it_ran, w]\n", "base"),
    "a tag that names code": (b"{recipe}\nlogger: !!python/name:os.system\n", "base"),
    "an alias without an anchor": (b"{recipe}\nlogger: *nowhere\n", "base"),
    "lists nested 5,000 deep": (b"{recipe}\nlogger: " + b"[" * 5000 + b"]" * 5000 + b"\n", "base"),
}
_VALUES: dict[tuple[str, str], str] = {
    ("vocab_size: 300", "vocab_size: 3"): "tokenizer.vocab_size",
    ("vocab_size: 300", "vocab_size: 300.5"): "tokenizer.vocab_size",
    ("vocab_size: 300", "vocab_size: -1"): "tokenizer.vocab_size",
    ("vocab_size: 300", "vocab_size: .nan"): "tokenizer.vocab_size",
    ("vocab_size: 300", "vocab_size: ???"): "tokenizer.vocab_size",
    ("vocab_size: 300", "vocab_sise: 300"): "vocab_sise",
    ("warmup_steps: 1", "warmup_steps: one"): "schedule.warmup_steps",
    ("warmup_steps: 1", "warmup_steps: [1]"): "schedule.warmup_steps",
    ("global_batch_size: 16", "global_batch_size: 0"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: 1000000000000"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: true"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: '16'"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: ${data.nothing}"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: ${data.global_batch_size}"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: ${oc.env:NO_SUCH_VARIABLE}"): "data.global_batch_size",
    ("global_batch_size: 16", "global_batch_size: ${"): "recipes/experiment/base.yaml",
    ("global_batch_size: 16", "global_batch_size: ${nothing:1}"): "data.global_batch_size",
    ("streams_per_group: 4", "streams_per_group: 10000000000"): "data.streams_per_group",
    ("shards: shards/*.tar", "shards: 7"): "data.train.shards",
    ("shards: shards/*.tar", "shards: []"): "data.train.shards",
    ("shards: shards/*.tar", "shards: ''"): "data.train.shards",
    ("shards: shards/*.tar", "shards: shards/{00000..00003.tar"): "data.train.shards",
    ("shards: shards/*.tar", "shards: shards/{0..99999999}.tar"): "data.train.shards",
    ("shards: shards/*.tar", "shards: recipes/experiment/base.yaml"): "recipes/experiment/base.yaml",
    ("shards: shards/*.tar", "shards: shards"): "shards",
    ("shards: shards/*.tar", "shards: gopher://host/{0..3}.tar"): "gopher",
    ("shards: shards/*.tar", 'shards: "shards/\\0.tar"'): "data.train.shards",
    ("captions: [txt, json.caption_zh]", "captions: {a: txt}"): "data.train.captions",
    ("captions: [txt, json.caption_zh]", "captions: [txt, 7]"): "data.train.captions",
    ("captions: [txt, json.caption_zh]", "captions: json..caption"): "data.train.captions",
    ("captions: [txt, json.caption_zh]", "captions: []"): "captions",
    ("captions: [txt, json.caption_zh]", "captions: 标题"): "data.train.captions",
    ("  augment: null", "  augment: {_target_: builtins.open, file: it_ran, mode: w}"): "data.augment",
    ("  augment: null", "  augment: 7"): "data.augment",
    ("  augment: null", "  mix: [a]"): "experiment/base",
    ("  augment: null", "  mix: {a: 3}"): "data.mix",
    ("  accelerator: cpu", "  accelerator: abacus"): "abacus",
    ("  accelerator: cpu", "  accelerator: null"): "trainer.accelerator",
    ("  devices: 1", "  devices: -2"): "trainer.devices",
    ("  devices: 1", "  devices: many"): "trainer.devices",
    ("  log_every_n_steps: 1", "  log_every_n_steps: 0"): "trainer.log_every_n_steps",
    ("  log_every_n_steps: 1", "  precision: 8"): "trainer.precision",
    ("  log_every_n_steps: 1", "  gradient_clip: .nan"): "trainer.gradient_clip",
    ("  keep_last: null", "  keep_last: 0"): "checkpoint.keep_last",
    ("  keep_last: null", "  every_minutes: .inf"): "checkpoint.every_minutes",
    ("  name: new", "  name: ../../outside"): "run.name",
    ("  name: new", "  name: ''"): "run.name",
    ("  name: new", "  name: [new]"): "run.name",
    ("  name: new", '  name: "new\\0"'): "run.name",
    ("  name: new", "  name: " + "n" * 300): "run.name",
    ("  name: new", "  name: new\n  seed: -1"): "seed",
    ("  name: new", "  name: new\n  seed: 1e3"): "run.seed",
    ("  name: new", "  name: new\n  seed: 1000000000000000000000000000000"): "seed",
    ("override /model: tiny", "override /model: tinny"): "tinny",
    ("override /model: tiny", "override /modell: tiny"): "modell",
    ("override /model: tiny", "override /model: ../../../etc/passwd"): "passwd",
}

_TYPED: dict[tuple[str, ...], str] = {
    ("optimizer.lr=-1.0",): "optimizer.lr",
    ("optimizer.lr=nan",): "optimizer.lr",
    ("optimizer.lr=inf",): "optimizer.lr",
    ("optimizer.lr=",): "optimizer.lr",
    ("optimizer.betas=[0.9,nan]",): "optimizer.betas",
    ("optimizer.weight_decay=nan",): "optimizer",
    ("optimizer.eps=nan",): "optimizer",
    ("optimizer=sgd",): "sgd",
    ("optimizer=null",): "optimizer",
    ("optimizer={}",): "optimizer",
    ("optimizer._target_=os.system",): "optimizer",
    ("optimizer._target_=builtins.open",): "optimizer",
    ("~optimizer.lr",): "optimizer.lr",
    ("model={}",): "model",
    ("model=7",): "model",
    ("model.text=null",): "model.text",
    ("model.image.options={patch_size: 0}",): "model.image",
    ("model.image.image_size=17",): "model.image.image_size",
    ("model.init_logit_scale=nan",): "model.init_logit_scale",
    ("model.text.heads=5",): "model.text.heads",
    ("model.text.width=10000000000000",): "model",
    ("trainer.max_steps=1e3",): "trainer.max_steps",
    ("trainer.max_steps=null",): "trainer.max_steps",
    ("trainer.max_steps=99999999999999999999",): "trainer.max_steps",
    ("run.name=a b",): "a b",
    ("run.name='it\\'s'",): "it's",
    ("run.name=\"标题 'x'\"",): "标题 'x'",
    ("run.name=[",): "[",
    ("run.resume=maybe",): "run.resume",
    ("run.accept_changes=optimizer.lr",): "accept_changes",
    ("init_from=nowhere",): "nowhere",
    ("init_from=recipes",): "recipes",
    ("paths.runs=photos.csv",): "photos.csv",
    ("paths.runs=/proc/nowhere",): "/proc/nowhere",
    ("data.preprocess.background=[1,2]",): "data.preprocess.background",
    ("data.preprocess.background=[a,b,c]",): "data.preprocess.background",
    ("data.cache.max_gib=-1", "data.cache.folder=copies"): "data.cache.max_gib",
    ("data.remote.timeout_s=0",): "data.remote.timeout_s",
    ("data.max_broken_share=nan",): "data.max_broken_share",
    ("suite.evaluators.colours.templates=[]",): "templates",
    ("suite.evaluators.colours.classes.path=/dev/null",): "/dev/null",
    ("suite.evaluators=null",): "suite.evaluators",
    ("logger.csv._target_=vlm.training.Nothing",): "logger.csv",
    ("logger.csv.folder=/proc/x",): "/proc/x",
    ("checkpoint.keep_best=nothing",): "checkpoint.keep_best",
    ("schedule.final_lr_fraction=nan",): "schedule.final_lr_fraction",
    ("=",): "=",
    ("optimizer.lr",): "optimizer.lr",
    ("--config-name", "nothing"): "nothing",
    ("--no-such-flag",): "--no-such-flag",
}

_EVALUATE: dict[tuple[str, ...], str] = {
    ("batch_size=0",): "batch_size",
    ("num_workers=-1",): "num_workers",
    ("device=gpu9",): "device",
    ("run=eval",): "eval",
    ("run=eval/classes.json",): "eval/classes.json",
    ("suite=colours",): "colours",
    ("out=photos.csv",): "photos.csv",
}

_SHARDS: dict[tuple[str, ...], str] = {
    ("check", "shards=shards/*.tar", "workers=0"): "workers",
    ("check", "shards=shards/*.tar", "tokenizer_path=photos.csv"): "photos.csv",
    ("check", "shards=shards/*.tar", "captions=null"): "captions",
    ("check", "shards=shards/*.tar", "workers=1", "out=/proc/x/y.json"): "/proc",
    ("preview", "shards=shards/*.tar", "num_samples=-1"): "num_samples",
    ("preview", "shards=shards/*.tar", "font=photos.csv"): "photos.csv",
    ("preview", "shards=shards/*.tar", "image_size=1000000"): "image_size",
    ("preview", "shards=shards/*.tar", "seed=x"): "seed",
    ("index", "shards=7"): "shards",
    ("index", "shards=null"): "shards",
    ("index", "shards={a: b}"): "shards",
    ("pack", "input=photos.csv", "out=shards", "workers=1"): "out=shards",
    ("pack", "input=photos.csv", "out=photos.csv/x", "workers=1"): "photos.csv",
    ("pack", "input=photos.csv", "out=packed", "image=nothing"): "nothing",
    ("pack", "input=photos.csv", "out=packed", "max_mb=0"): "max_mb",
    ("pack", "input=photos.csv", "out=packed", "separator=ab"): "separator",
}
