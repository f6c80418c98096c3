"""Runs of DeGLA: the teacher, resuming, micro-batches, and what is refused."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy_run import composed, tiny_overrides

from vlm.cli.train import run_from, train_from
from vlm.errors import ConfigError
from vlm.training import plan

STEPS = 6
OWN = [
    "suite=none",
    "objective=degla",
    "data.train.negatives=negatives",
    "data.train.negatives_per_sample=3",
    f"trainer.max_steps={STEPS}",
    "checkpoint.every_n_steps=1",
    "checkpoint.keep_last=null",
    "trainer.ema_warmup=false",
]
DECAY = 0.9


def train(toy: Path, name: str, *overrides: str) -> Path:
    words = [*OWN, f"run.name={name}", f"trainer.ema_decay={DECAY}", *overrides]
    return train_from(composed(tiny_overrides(toy, *words)))


def stored(run: Path, step: int, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / name)


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{n: v for n, v in row.items() if n.startswith("train/")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def first(toy: Path) -> Path:
    overrides = ["run.name=before_degla", "trainer.max_steps=3", "suite=none"]
    return train_from(composed(tiny_overrides(toy, *overrides)))


@pytest.fixture(scope="module")
def run(toy: Path, first: Path) -> Path:
    return train(toy, "degla", f"init_from={first}")


def test_the_teacher_remembers_the_first_weights(run: Path, first: Path) -> None:
    average = {name: value.double() for name, value in stored(first, 3).items()}
    for step in range(1, STEPS + 1):
        weights = stored(run, step)
        average = {name: DECAY * value + (1 - DECAY) * weights[name] for name, value in average.items()}
        for name, value in stored(run, step, "ema.safetensors").items():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-7, msg=name)


def test_at_first_student_and_teacher_are_one(run: Path) -> None:
    rows = curves(run)
    assert float(rows[0]["train/loss/distillation"]) < 1e-10
    assert all(float(row["train/loss/distillation"]) > 1e-8 for row in rows[1:])
    assert all(0 < float(row["train/hard_negatives"]) <= 1 for row in rows)


def test_a_resumed_run_is_the_same_to_the_last_bit(toy: Path, run: Path, first: Path) -> None:
    cut = train_in_two(toy, first)
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, two = stored(run, STEPS, name), stored(cut, STEPS, name)
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[key]) for key, value in one.items()), name


def train_in_two(toy: Path, first: Path) -> Path:
    """Ended after three steps by taking the later checkpoints away."""

    cut = train(toy, "degla_cut", f"init_from={first}")
    for step in range(4, STEPS + 1):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:08d}")
    return train(toy, "degla_cut", f"init_from={first}", "run.resume=true")


def test_micro_batches_are_the_same_run(toy: Path, run: Path, first: Path) -> None:
    small = train(toy, "degla_small", f"init_from={first}", "trainer.micro_batch_size=12")
    for mine, theirs in zip(curves(run), curves(small), strict=True):
        for name in mine:
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=2e-4, abs=1e-6), name


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_are_the_same_run(toy: Path, run: Path, first: Path, strategy: str) -> None:
    name = f"degla_{strategy}"
    words = [*OWN, f"run.name={name}", f"trainer.ema_decay={DECAY}", f"init_from={first}"]
    words += [f"trainer={strategy}", "trainer.devices=2", "trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "vlm.cli.train", *tiny_overrides(toy, *words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for mine, theirs in zip(curves(run), curves(toy / "runs" / name), strict=True):
        for column in ("train/loss", "train/loss/itc", "train/loss/igc", "train/loss/tgc", "train/grad_norm"):
            assert float(mine[column]) == pytest.approx(float(theirs[column]), rel=2e-4), column
        assert float(mine["train/loss/distillation"]) == pytest.approx(
            float(theirs["train/loss/distillation"]), rel=2e-3, abs=1e-9
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.ema_decay=null"],
            r"has a teacher, .* but trainer\.ema_decay=null; set trainer\.ema_decay=0",
        ),
        (["data.train.negatives=null"], r"needs hard negatives, but data\.train\.negatives=null; make some"),
        (["trainer.ema_warmup=true"], r"trainer\.ema_warmup=true lets the average forget"),
        (["objective=clip"], r"data\.train\.negatives=negatives, but the objective does not look at hard"),
        (["trainer=deepspeed_zero2"], r"trainer\.ema_decay=0\.9 with trainer\.strategy=deepspeed_zero2"),
        (
            ["trainer=deepspeed_zero2", "trainer.ema_decay=null"],
            r"an objective with a teacher, .* with trainer\.strategy=deepspeed_zero2, which cannot hold",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    toy: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy, "refused", *overrides)
    assert not (toy / "runs" / "refused").exists()


def test_a_decay_of_one_keeps_the_teacher_as_it_was(toy: Path, first: Path) -> None:
    still = train(toy, "degla_still", f"init_from={first}", "trainer.ema_decay=1.0", "trainer.max_steps=3")
    assert all(
        torch.equal(value, stored(first, 3)[n]) for n, value in stored(still, 3, "ema.safetensors").items()
    )


def test_a_teacher_of_random_weights_is_told(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(toy, "degla_random", "trainer.max_steps=3")
    assert "the teacher remembers random weights" in caplog.text


def test_the_plan_counts_negatives_and_the_teacher(toy: Path) -> None:
    def planned(*overrides: str) -> dict[str, float]:
        words = tiny_overrides(toy, *OWN, f"trainer.ema_decay={DECAY}", *overrides)
        found = {}
        for line in plan(run_from(composed(words))).splitlines():
            if number := re.fullmatch(r"  (.+?) +([\d,.]+)", line):
                found[number[1]] = float(number[2].replace(",", ""))
        return found

    degla = planned()
    clip = planned("objective=clip", "data.train.negatives=null", "trainer.ema_decay=null")
    assert degla["text tower"] == pytest.approx(4 * clip["text tower"], rel=0.1)
    assert degla["teacher"] == pytest.approx((degla["text tower"] + degla["image tower"]) / 3, rel=0.1)
    assert degla["average"] > 0
