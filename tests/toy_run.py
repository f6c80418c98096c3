"""Compose configurations in process, and make them small enough for a test."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from vlm.data.toy import write_toy
from vlm.settings import config_dir, register_schemas, resolve

TINY_IMAGE = [
    "model.embed_dim=16",
    "++model.image.name=resnet10t",
    "++model.image.image_size=32",
    "++model.image.options.channels=[8, 8, 16, 16]",
    "++model.image.options.stem_width=8",
    "++model.image.options.norm_layer=groupnorm1",
]
TINY_TEXT = ["model.text.width=24", "model.text.layers=1", "model.text.heads=3", "tokenizer.vocab_size=400"]
TINY_MODEL = [*TINY_IMAGE, *TINY_TEXT]
TINY_PATCHES = [
    "model.embed_dim=16",
    "++model.image.name=vit_tiny_patch16_224",
    "++model.image.image_size=32",
    "++model.image.options={patch_size:8,embed_dim:16,depth:1,num_heads:2}",
    "model.text_decoder.layers=1",
    "model.text_decoder.heads=3",
]
"""Of a model with a text decoder."""
TINY_IMAGE_DECODER = [f"model.image_decoder.{name}" for name in ("width=12", "layers=1", "heads=2")]
TINY_POOLER = ["model.image_pooler.queries=4", "model.image_pooler.heads=2"]
SIZES = {"num_train": 200, "num_test": 24, "num_held_out": 24, "num_choice": 24}


def make_toy(folder: Path) -> Path:
    """Write toy shards that `tiny_overrides(folder, …)` train on."""
    write_toy(folder / "data" / "toy", **SIZES, image_size=32, seed=0, progress=False)
    return folder


def tiny_overrides(folder: Path, *overrides: str) -> list[str]:
    """`experiment=toy` at a size that takes seconds."""
    return ["experiment=toy", *_tiny(folder, *TINY_IMAGE, *TINY_TEXT, *overrides)]


def tiny_captions(folder: Path, *overrides: str, experiment: str = "sycoca_toy") -> list[str]:
    """A recipe with decoders at such a size."""
    parts = TINY_IMAGE_DECODER if experiment.startswith("sycoca") else []
    parts = [*parts, *(TINY_POOLER if "vit_b32" in experiment else [])]
    return [f"experiment={experiment}", *_tiny(folder, *TINY_PATCHES, *parts, *TINY_TEXT, *overrides)]


def tiny_images(folder: Path, *overrides: str) -> list[str]:
    """`experiment=mvt_toy` at such a size, with the classes of scenes instead of clusters."""
    classes = ["data.train.labels=cls", "data.train.labels_per_sample=null", "objective.num_classes=256"]
    return ["experiment=mvt_toy", *_tiny(folder, *TINY_IMAGE, *classes, *overrides)]


def _tiny(folder: Path, *overrides: str) -> list[str]:
    return [
        f"paths.data={folder}/data",
        f"paths.runs={folder}/runs",
        *(f"make_data.{name}={count}" for name, count in SIZES.items()),
        "make_data.image_size=32",
        "make_data.seed=0",
        "data.global_batch_size=32",
        "data.streams_per_group=4",
        "data.stream_groups=2",
        "data.num_workers=0",
        "trainer.max_steps=8",
        "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "schedule.warmup_steps=2",
        "checkpoint.every_n_steps=4",
        "evaluation.every_n_steps=8",
        *overrides,
    ]


def composed(overrides: list[str], *, name: str = "train") -> dict[str, Any]:
    """The resolved configuration, as the command makes it."""
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return resolve(compose(name, overrides))
