"""Toy runs on GPUs: beside a CPU, resumed, and spread over several."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpus import needs_gpus
from safetensors.torch import load_file

pytest.importorskip("hydra")
from toy_run import TINY_MODEL, tiny_overrides

from vlm.training.engines import STRATEGIES

pytestmark = needs_gpus()
STEPS = 8
PRECISIONS = ["32-true", "bf16-mixed"]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="pip install 'vlm[deepspeed]'"
)
ENGINES = [pytest.param(s, marks=needs_deepspeed) if "deepspeed" in s else s for s in STRATEGIES]
TRAIN = Path(__file__).parents[1] / "repeatable_train.py"


def train(toy: Path, name: str, *overrides: str) -> Path:
    """The command, in a process of its own; the folder of the run."""
    words = tiny_overrides(toy, f"run.name={name}", "run.resume=true", "suite=none", *overrides)
    done = subprocess.run(
        [sys.executable, str(TRAIN), *words],
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return toy / "runs" / name


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def on_cpu(toy: Path) -> Path:
    return train(toy, "on_cpu")


def check_beside_cpu(run: Path, on_cpu: Path, precision: str) -> None:
    rel = 1e-4 if precision == "32-true" else 2e-2
    assert column(run, "train/loss") == pytest.approx(column(on_cpu, "train/loss"), rel=rel)
    assert all(weight.dtype == torch.float32 for weight in weights(run).values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_trains_as_a_cpu_does(precision: str, toy: Path, on_cpu: Path) -> None:
    run = train(toy, f"gpu_{precision}", "trainer.accelerator=gpu", f"trainer.precision={precision}")
    check_beside_cpu(run, on_cpu, precision)


def check_resumed(toy: Path, name: str, *overrides: str) -> None:
    whole = train(toy, name, *overrides)
    cut = whole.with_name(f"{name}_resumed")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / f"step_{STEPS:08d}")
    train(toy, cut.name, *overrides)
    assert column(cut, "train/loss") == column(whole, "train/loss")
    expected = weights(whole)
    for key, value in weights(cut).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_is_bit_identical_to_the_uninterrupted_one(precision: str, toy: Path) -> None:
    """With repeatable kernels; without them, the last bits differ between any two runs on a GPU."""
    check_resumed(toy, f"whole_{precision}", "trainer.accelerator=gpu", f"trainer.precision={precision}")


@pytest.mark.parametrize("strategy", ENGINES)
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=needs_gpus(2))])
def test_every_strategy_trains_as_a_cpu_does(devices: int, strategy: str, toy: Path, on_cpu: Path) -> None:
    spread = [f"trainer={strategy}", f"trainer.devices={devices}"]
    run = train(toy, f"{strategy}_{devices}", "trainer.accelerator=gpu", *spread)
    check_beside_cpu(run, on_cpu, "32-true")


def check_step(accelerator: str, folder: Path) -> None:
    tiny = ["experiment=toy", *TINY_MODEL, "data.global_batch_size=64", f"trainer.accelerator={accelerator}"]
    few = ["trainer.devices=1", "bench.steps=5", "bench.rounds=1", f"bench.out={folder}"]
    command = [sys.executable, "-m", "vlm.cli.main", "bench", "step", *tiny, *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    split = json.loads((folder / "step.json").read_text())["raw"]["vlm"][0]["split"]
    assert sum(split.values()) == pytest.approx(1)
    assert min(split[part] for part in ("image", "text", "loss", "backward", "optimizer")) > 0


def test_the_split_of_a_step_is_measured_on_a_gpu(tmp_path: Path) -> None:
    """By events on its stream, which add up to the time of the whole."""
    check_step("gpu", tmp_path)
