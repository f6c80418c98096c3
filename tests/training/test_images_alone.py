"""Training an image tower alone, and aligning it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import composed, tiny_images, tiny_overrides

import vlm
from vlm.cli.train import train_from
from vlm.errors import ConfigError
from vlm.inference import read_weights

SHORT = ["suite=none", "logger=none", "trainer.max_steps=2", "schedule.warmup_steps=1"]


def train(toy: Path, name: str, *overrides: str) -> Path:
    return train_from(composed(tiny_images(toy, f"run.name={name}", *SHORT, *overrides)))


def align(toy: Path, name: str, *overrides: str) -> Path:
    return train_from(composed(tiny_overrides(toy, f"run.name={name}", *SHORT, *overrides)))


def last(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def images(toy: Path) -> Path:
    """A run of an image tower."""
    return train(toy, "images")


def test_the_checkpoint_has_no_text(images: Path) -> None:
    loaded = vlm.load(images)
    assert loaded.tokenizer is None
    assert loaded.model.text is None
    assert not (last(images) / "tokenizer.json").exists()
    assert not [name for name in read_weights(last(images)) if "text" in name]
    with pytest.raises(ConfigError, match="no text tower"):
        loaded.model.encode_text(torch.zeros(1, 4, dtype=torch.int64))
    assert loaded.model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 16)


def test_resume_is_bit_identical(toy: Path) -> None:
    changes = ["trainer.max_steps=4", "checkpoint.every_n_steps=2", "objective.sample_rate=0.5"]
    whole = train(toy, "images_whole", *changes)
    train(toy, "images_cut", *changes, "trainer.max_steps=2")
    train(toy, "images_cut", *changes, "run.resume=true", "run.accept_changes=[trainer.max_steps]")
    for name in (path.name for path in last(whole).glob("*.safetensors")):
        if name.startswith(("model", "centres")):
            one, two = (last(toy / "runs" / run) / name for run in ("images_whole", "images_cut"))
            assert one.read_bytes() == two.read_bytes(), name
    assert list(last(whole).glob("centres_*"))


def test_a_frozen_tower_keeps_its_weights_and_the_text_tower_learns(toy: Path, images: Path) -> None:
    run = align(toy, "lit", f"init_from={images}", "freeze=image")
    before, after = read_weights(last(images)), read_weights(last(run))
    assert {name.split(".")[0] for name in before} == {"image", "image_projection", "logit_scale"}
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name != "logit_scale"), name
    assert "text_projection.weight" in after
    free = read_weights(last(align(toy, "not_lit", f"init_from={images}")))
    assert not torch.equal(free["image_projection.weight"], before["image_projection.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer=bpe"], r"tokenizer\.context_length: .*model\.text"),
        (["data.train.captions=txt"], r"tokenizer=none cannot read captions"),
        (["freeze=text"], r"freeze='text' is no tower of this model; there is image"),
        (["objective.num_classes=2"], r"objective\.num_classes=2: labels have to be below it"),
    ],
)
def test_mistakes_are_named(toy: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy, "mistake", *overrides)


def command(toy: Path, name: str, ranks: int, *overrides: str) -> list[dict[str, Any]]:
    """The rows that a run in processes of its own has logged."""
    changes = [f"run.name={name}", "suite=none", f"trainer.devices={ranks}", "objective.sample_rate=0.3"]
    run = [sys.executable, "-m", "vlm.cli.train", *tiny_images(toy, *changes, *overrides)]
    subprocess.run(run, check=True, capture_output=True, timeout=300)
    lines = (toy / "runs" / name / "metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


@pytest.mark.long
def test_another_number_of_ranks_goes_on_with_the_same_losses(toy: Path) -> None:
    whole = command(toy, "one_rank", 1, "trainer.max_steps=6")
    command(toy, "two_then_one", 2, "trainer.max_steps=3", "schedule=cosine")
    accepted = ["run.resume=true", "run.accept_changes=[trainer.max_steps]"]
    again = command(toy, "two_then_one", 1, "trainer.max_steps=6", *accepted)
    assert len(whole) == len(again) == 6
    for one, two in zip(whole, again, strict=True):
        assert float(one["train/loss"]) == pytest.approx(float(two["train/loss"]), abs=1e-4), json.dumps(two)
