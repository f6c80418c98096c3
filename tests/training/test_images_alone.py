"""Training an image tower alone, and aligning it."""

import csv
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_run import composed, tiny_images, tiny_overrides

import vlm
from vlm.cli.train import run_from, train_from
from vlm.data.labels import write_sidecar
from vlm.errors import ConfigError
from vlm.inference import read_weights
from vlm.training import plan

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


def test_the_plan_of_an_aligned_run_counts_a_new_text_tower(toy: Path, images: Path) -> None:
    counts = []
    for start in ([], [f"init_from={images}", "freeze=image"]):
        text = plan(run_from(composed(tiny_overrides(toy, *SHORT, *start))))
        counts.append(
            re.findall(r"^  (?:image|text) tower +[\d.]+$|^  (?:image|text) +[\d.]+$", text, re.M)[:2]
        )
    assert len(counts[0]) == 2
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.text_layer_decay=0.9"], r"optimizer\.text_layer_decay=0\.9, but model\.text=null"),
        (["freeze=image"], r"freeze=image leaves nothing to train, as model\.text=null"),
        (["suite=toy"], r"suite: held_out_en, .* compare images with texts, .* suite=vision does without"),
        (["tokenizer=bpe"], r"tokenizer\.context_length: .*model\.text"),
        (["data.train.captions=txt"], r"tokenizer=none cannot read captions"),
        (["freeze=text"], r"freeze='text' is no tower of this model; there is image"),
        (["objective.num_classes=2"], r"objective\.num_classes=2: labels have to be below it"),
    ],
)
def test_mistakes_are_named(toy: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy, "mistake", *overrides)


def test_random_weights_are_not_frozen(toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"freeze=image would keep random weights; .* by init_from, or"):
        align(toy, "frozen", "freeze=image")


def write_labels(toy: Path, *, shift: int) -> None:
    for shard in (toy / "data/toy/train").glob("*.tar"):
        with tarfile.open(shard) as tar:
            rows = len({name.partition(".")[0] for name in tar.getnames()})
        labels = (torch.arange(rows)[:, None] + shift) % 5
        write_sidecar(shard.with_suffix(".five.parquet"), labels.numpy(), num_classes=5, made_by="test")


def test_labels_are_compared_with_the_classes_and_with_those_before(toy: Path) -> None:
    five = ["data.train.labels=five", "checkpoint.every_n_steps=1"]
    write_labels(toy, shift=0)
    with pytest.raises(ConfigError, match=r"objective\.num_classes=4, but .*labels name 5 classes"):
        train(toy, "five", *five, "objective.num_classes=4")
    train(toy, "five", *five, "objective.num_classes=5")
    write_labels(toy, shift=1)
    again = [*five, "run.resume=true", "objective.num_classes=5"]
    with pytest.raises(ConfigError, match=r"data\.train\.labels: was 'five of sha256 \w{12}', is 'five of"):
        train(toy, "five", *again)
    train(toy, "five", *again, "run.accept_changes=[data.train.labels]")
    with pytest.raises(ConfigError, match=r"the weights depend on it: .*objective\.num_classes: was 5, is 6"):
        train(toy, "five", *five, "run.resume=true", "objective.num_classes=6")


STEPS, HALF = 6, 3


def started(toy: Path, name: str, *overrides: str) -> Path:
    """A run in processes of its own."""
    changes = [f"run.name={name}", "suite=none", "run.resume=true", f"trainer.max_steps={STEPS}"]
    changes += [f"checkpoint.every_n_steps={HALF}", "objective.sample_rate=0.3"]
    zero = any(word.startswith("trainer=deepspeed") for word in overrides)
    program = [str(Path(__file__).parents[1] / "deepspeed_cpu.py")] if zero else ["-m", "vlm.cli.train"]
    words = [sys.executable, *program, *tiny_images(toy, *changes, *overrides)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return toy / "runs" / name


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def centres_of(run: Path) -> torch.Tensor:
    return torch.cat([load_file(path)["weight"] for path in sorted(last(run).glob("centres_*"))])


@pytest.fixture(scope="module")
def one_process(toy: Path) -> Path:
    return started(toy, "images_one", "trainer.devices=1")


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2"])
def test_two_ranks_are_one_process_and_go_on_as_one(strategy: str, toy: Path, one_process: Path) -> None:
    two = started(toy, f"images_{strategy}", f"trainer={strategy}", "trainer.devices=2")
    assert len(list(last(two).glob("centres_*"))) == 2
    one = two.with_name(f"images_{strategy}_then_one")
    shutil.copytree(two, one)
    shutil.rmtree(last(one))
    started(toy, one.name, "trainer.devices=1")
    for run in (two, one):
        assert losses(run) == pytest.approx(losses(one_process), rel=1e-5)
        torch.testing.assert_close(centres_of(run), centres_of(one_process), rtol=1e-3, atol=1e-5)
