"""What is damaged: shards with their index, a run that was interrupted, a recipe, tables."""

import json
from pathlib import Path

from small_shards import write_tar

from fuzz.damage import png

NUM_SHARDS, SHARD_SIZE, BATCH_SIZE = 4, 16, 16
SAMPLES = NUM_SHARDS * SHARD_SIZE
STEPS = SAMPLES // BATCH_SIZE
RUN, LAST, BEFORE = "runs/done", "runs/done/checkpoints/step_00000003", "runs/done/checkpoints/step_00000002"

RECIPE = f"""\
# @package _global_
defaults:
  - override /model: tiny
  - override /logger: csv
  - override /suite: colours

run:
  name: new

data:
  train:
    shards: shards/*.tar
    captions: [txt, json.caption_zh]
  augment: null
  global_batch_size: {BATCH_SIZE}
  stream_groups: 2
  streams_per_group: 4
  num_workers: 0

tokenizer:
  vocab_size: 300

schedule:
  warmup_steps: 1

trainer:
  max_steps: {STEPS}
  accelerator: cpu
  devices: 1
  log_every_n_steps: 1

checkpoint:
  every_n_steps: 2
  keep_last: null

evaluation:
  every_n_steps: 1000
  batch_size: 16
"""
MODEL = """\
embed_dim: 8
init_logit_scale: 10.0
image:
  name: vit_tiny_patch16_224
  image_size: 16
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
  pretrained: false
  options: {patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}
text:
  kind: causal
  context_length: 16
  vocab_size: null
  eot_id: null
  width: 16
  layers: 1
  heads: 2
  activation: gelu
"""
LOGGER = """\
csv:
  _target_: vlm.training.CsvLogger
  folder: ${paths.runs}/${run.name}
"""
SUITE = """\
evaluators:
  colours:
    _target_: vlm.evaluation.ZeroShot
    shards: eval/*.tar
    classes:
      _target_: vlm.evaluation.ClassesFromJson
      path: eval/classes.json
      name: name
      label: id
    label: cls
    templates: eval/templates.txt
"""
NAMES = ["red", "green", "blue", "grey"]


def members(number: int) -> dict[str, bytes]:
    """A sample, made of what is the same under every version of every library."""
    name = NAMES[number % len(NAMES)]
    record = {"caption_zh": f"第{number}号", "id": number}
    return {
        "png": png((number * 3 % 256, 90, number * 7 % 256)),
        "txt": f"number {number} is {name}".encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
        "cls": str(number % len(NAMES)).encode(),
    }


def key_of(number: int) -> str:
    """The key of a sample within its shard."""
    return f"{number:06d}"


def shard_of(number: int) -> str:
    """The shard that a sample lies in."""
    return f"shards/{number // SHARD_SIZE:05d}.tar"


def write_shard(path: Path, first: int, changed: dict[int, dict[str, bytes]] | None = None) -> None:
    """A shard of samples numbered from `first`, some of them changed."""
    numbers = range(first, first + SHARD_SIZE)
    write_tar(path, {key_of(n): (changed or {}).get(n) or members(n) for n in numbers})


def change_sample(folder: Path, number: int, changed: dict[str, bytes]) -> None:
    """Write the shard of a sample anew, with other members in it."""
    write_shard(folder / shard_of(number), number - number % SHARD_SIZE, {number: changed})


def write_inputs(folder: Path) -> None:
    """Everything that is no result of training."""
    for shard in range(NUM_SHARDS):
        write_shard(folder / f"shards/{shard:05d}.tar", shard * SHARD_SIZE)
    write_shard(folder / "eval/00000.tar", 0)
    classes = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    (folder / "eval/classes.json").write_text(json.dumps(classes))
    (folder / "eval/templates.txt").write_text("number {c}\nit is {c}\n")
    for path, text in {
        "experiment/base": RECIPE,
        "model/tiny": MODEL,
        "logger/csv": LOGGER,
        "suite/colours": SUITE,
    }.items():
        target = folder / f"recipes/{path}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / "pictures").mkdir()
    rows = []
    for number in range(12):
        (folder / f"pictures/{number}.png").write_bytes(png((number * 20, 10, 10)))
        rows.append((f"pictures/{number}.png", f"number {number}"))
    (folder / "photos.csv").write_text(
        "filepath,title\n" + "".join(f"{path},{text}\n" for path, text in rows)
    )
    lines = (json.dumps({"filepath": path, "title": text}) for path, text in rows)
    (folder / "photos.jsonl").write_text("\n".join(lines) + "\n")


def drop_index(folder: Path) -> None:
    """Shards as they are before anybody counted them."""
    for path in (folder / "shards").iterdir():
        if path.suffix != ".tar":
            path.unlink()
