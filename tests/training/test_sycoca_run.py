"""Runs with decoders: strategies, resuming, micro-batches, beginnings, and what is refused."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from strategies import runnable
from torch import Tensor
from toy_run import TINY_POOLER, composed, tiny_captions, tiny_overrides

from vlm.cli.train import run_from, train_from
from vlm.errors import ConfigError
from vlm.inference import read_description
from vlm.training import plan
from vlm.training.engines import STRATEGIES

TRAIN = Path(__file__).parents[1] / "deepspeed_cpu.py"
STEPS = 6
OWN = [
    "suite=none",
    "model=sycoca_vit_b32",  # with a pooler and a class token
    *TINY_POOLER,
    f"trainer.max_steps={STEPS}",
    "checkpoint.every_n_steps=1",
    "checkpoint.keep_last=null",
]


def train(toy: Path, name: str, *overrides: str) -> Path:
    return train_from(composed(tiny_captions(toy, *OWN, f"run.name={name}", *overrides)))


def stored(run: Path, step: int, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / name)


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{n: v for n, v in row.items() if n.startswith("train/")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(toy: Path) -> Path:
    return train(toy, "sycoca")


def test_every_term_falls_short_of_chance_and_is_logged(run: Path) -> None:
    rows = curves(run)
    assert {"train/loss/itc", "train/loss/caption", "train/loss/reconstruction"} <= rows[0].keys()
    assert float(rows[-1]["train/loss/caption"]) < float(rows[0]["train/loss/caption"])
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])


def test_a_resumed_run_is_the_same_to_the_last_bit(toy: Path, run: Path) -> None:
    cut = train(toy, "sycoca_cut")
    for step in range(4, STEPS + 1):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:08d}")
    train(toy, "sycoca_cut", "run.resume=true")
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, two = stored(run, STEPS, name), stored(cut, STEPS, name)
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[key]) for key, value in one.items()), name


def test_micro_batches_are_the_same_run(toy: Path, run: Path) -> None:
    assert_same_curves(train(toy, "sycoca_small", "trainer.micro_batch_size=12"), run)


def assert_same_curves(mine: Path, theirs: Path) -> None:
    for one, other in zip(curves(mine), curves(theirs), strict=True):
        for name in one:
            assert float(one[name]) == pytest.approx(float(other[name]), rel=5e-4, abs=1e-6), name


def in_processes(toy: Path, name: str, *overrides: str) -> Path:
    """A run whose ranks are processes of their own, without the tests' checks of types."""
    folder = toy / "keys" / name
    folder.mkdir(parents=True)
    words = tiny_captions(toy, *OWN, f"run.name={name}", *overrides)
    done = subprocess.run(
        [sys.executable, str(TRAIN), *words],
        env=os.environ | {"KEYS": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return toy / "runs" / name


@pytest.mark.long
@pytest.mark.parametrize("strategy", runnable(*STRATEGIES))
def test_two_ranks_are_the_same_run(toy: Path, run: Path, strategy: str) -> None:
    two = in_processes(toy, f"sycoca_{strategy}", f"trainer={strategy}", "trainer.devices=2")
    assert_same_curves(two, run)


@pytest.mark.long
@pytest.mark.parametrize("compiled", ["blocks", "towers"])
def test_it_runs_compiled_with_recomputed_blocks(toy: Path, run: Path, compiled: str) -> None:
    words = ["trainer.activation_checkpointing=true", f"trainer.compile={compiled}"]
    assert_same_curves(in_processes(toy, f"sycoca_compiled_{compiled}", *words), run)


def test_decoders_are_begun_anew_or_left_behind(toy: Path, run: Path) -> None:
    without = ["objective=coca", "model=coca_vit_b32", *TINY_POOLER]
    words = [
        w
        for w in tiny_captions(toy, *OWN)
        if not w.startswith(("model.image_decoder", "experiment", "model="))
    ]
    coca = train_from(
        composed(["experiment=coca_toy", *words, *without, "run.name=from_sycoca", f"init_from={run}"])
    )
    assert not any(name.startswith("image_decoder") for name in stored(coca, 1))
    again = train(toy, "from_coca", f"init_from={coca}", "optimizer.lr=1e-12")
    for name, value in stored(again, 1).items():
        if not name.startswith("image_decoder"):
            torch.testing.assert_close(value, stored(coca, STEPS)[name], rtol=0, atol=1e-6)


def test_a_class_token_keeps_its_position_in_a_shorter_context(toy: Path, run: Path) -> None:
    sizes = ["model.text.context_length=40", "tokenizer.context_length=40", "resize_positions=true"]
    words = [*sizes, f"init_from={run}", "optimizer.lr=1e-12", "trainer.max_steps=3"]
    shorter = stored(train(toy, "shorter", *words), 1)["text.positional_embedding"]
    longer = stored(run, STEPS)["text.positional_embedding"]
    torch.testing.assert_close(shorter[:40], longer[:40], rtol=0, atol=1e-6)
    torch.testing.assert_close(shorter[40], longer[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.image_decoder=null"], r"trains a decoder, but model\.image_decoder=null"),
        (["objective=clip"], r"model\.text_decoder is a decoder that the objective does not train"),
        (
            ["objective.reconstruction_weight=0.0"],
            r"model\.image_decoder is a decoder that the",
        ),
        (
            ["model.text_decoder.heads=5"],
            r"model\.text_decoder\.heads=5 does not divide model\.text",
        ),
        (["model.image_pooler.queries=1"], r"model\.image_pooler\.queries=1 must be at least 2"),
        (["++model.image.options.patch_drop_rate=0.5"], r"patch_drop_rate=0\.5 drops patches that a"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    toy: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy, "refused", *overrides)
    assert not (toy / "runs" / "refused" / "checkpoints").exists()


def test_a_tower_without_patches_is_refused_by_name(toy: Path) -> None:
    words = tiny_overrides(
        toy, "run.name=no_patches", "objective=coca", "model.text_decoder={layers:1,heads:3,activation:gelu}"
    )
    with pytest.raises(
        ConfigError, match=r"model\.image\.name='resnet10t' is a ResNet of timm, without patch"
    ):
        train_from(composed(words))


def test_the_plan_counts_the_decoders(toy: Path) -> None:
    def planned(*overrides: str) -> dict[str, float]:
        found = {}
        for line in plan(run_from(composed(tiny_captions(toy, *OWN, *overrides)))).splitlines():
            if number := re.fullmatch(r"  (.+?) +([\d,.]+)", line):
                found.setdefault(number[1], float(number[2].replace(",", "")))
        return found

    found = planned()
    assert found["text decoder"] > 0
    assert found["image decoder"] > 0
    assert (
        found["activations"]
        > planned("objective.reconstruction_weight=0.0", "model.image_decoder=null")["activations"]
    )


def test_the_description_says_what_the_model_is(run: Path) -> None:
    spec = read_description(run / "checkpoints" / f"step_{STEPS:08d}").model
    assert spec.image_decoder is not None
    assert json.loads(json.dumps(spec.to_mapping()))["text"]["pooling"] == "class"
