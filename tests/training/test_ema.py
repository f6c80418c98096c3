"""The average of weights: its numbers, its file, and what it is good for."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_loaded
from torch import Tensor
from toy_run import composed, tiny_overrides

import vlm
from vlm.cli import main as command
from vlm.cli.train import run_from, train_from
from vlm.errors import CheckpointError, ConfigError
from vlm.inference import save_weights
from vlm.training import plan
from vlm.training.ema import WeightAverage, decay_at
from vlm.training.outside import Outside

DECAY = 0.6  # reached after the 13th step
STEPS = 16
ODD = "++model.image.options.stem_width=7"  # weights that no number of ranks divides
RUN = [
    f"trainer.ema_decay={DECAY}",
    f"trainer.max_steps={STEPS}",
    "checkpoint.every_n_steps=1",
    "checkpoint.keep_last=null",
    "trainer.micro_batch_size=5",
    ODD,
]


def train(toy: Path, name: str, *overrides: str) -> Path:
    return train_from(composed(tiny_overrides(toy, f"run.name={name}", "suite=none", *overrides)))


def train_alone(toy: Path, name: str, *overrides: str) -> Path:
    """In processes of its own, as many as `trainer.devices` says."""
    words = tiny_overrides(toy, f"run.name={name}", *overrides)
    done = subprocess.run(
        [sys.executable, "-m", "vlm.cli.train", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return toy / "runs" / name


def stored(run: Path, step: int, name: str = "ema.safetensors") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / name)


def during_training(run: Path, step: int) -> dict[str, float]:
    return json.loads((run / "checkpoints" / f"step_{step:08d}" / "evaluation.json").read_text())


def evaluated(run: Path, step: int, weights: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Metrics by `vlm evaluate`, named as in training."""
    monkeypatch.setattr(sys, "argv", ["vlm", "evaluate", f"run={run}", f"weights={weights}", "device=cpu"])
    command.main()
    folder = f"step_{step:08d}_ema" if weights == "ema" else f"step_{step:08d}"
    results = json.loads((run / "evaluation" / folder / "results.json").read_text())
    assert results["weights"] == weights
    return {f"eval/{name}/{k}": v for name, r in results["results"].items() for k, v in r["metrics"].items()}


def assert_is_the_average(run: Path, first: dict[str, Tensor]) -> None:
    """Of the weights after each step, as a loop over numbers in float64 has it."""
    average = {name: value.double() for name, value in first.items()}
    for step in range(1, STEPS + 1):
        decay = min(DECAY, step / (9 + step))
        weights = stored(run, step, "model.safetensors")
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
        found = stored(run, step)
        assert found.keys() == weights.keys()
        for name, value in average.items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7, msg=name)
    assert (found["text_projection.weight"] - weights["text_projection.weight"]).abs().max() > 1e-4


@pytest.fixture(scope="module")
def first(toy: Path) -> Path:
    """A run whose weights the others begin with, so that these are known."""
    return train(toy, "before_the_average", "trainer.max_steps=3", ODD)


@pytest.fixture(scope="module")
def averaged(toy: Path, first: Path) -> Path:
    return train(toy, "averaged", *RUN, f"init_from={first}")


def test_the_average_is_that_of_the_weights_after_each_step(averaged: Path, first: Path) -> None:
    assert_is_the_average(averaged, stored(first, 3, "model.safetensors"))


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "other"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_two_ranks_have_the_same_average_and_hand_it_on(
    strategy: str, other: str, toy: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = stored(first, 3, "model.safetensors")
    two = [f"trainer={strategy}", "trainer.devices=2", f"init_from={first}", "evaluation.weights=ema"]
    run = train_alone(toy, f"averaged_{strategy}", *RUN, *two)
    assert_is_the_average(run, weights)
    assert evaluated(run, STEPS, "ema", monkeypatch) == during_training(run, STEPS)
    for step in range(9, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    train_alone(toy, run.name, *RUN, f"trainer={other}", "trainer.devices=1", "suite=none", "run.resume=true")
    assert_is_the_average(run, weights)


def test_a_resumed_average_is_bit_identical(toy: Path, averaged: Path) -> None:
    copy = averaged.with_name("averaged_again")
    shutil.copytree(averaged, copy)
    for step in range(8, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / f"step_{step:08d}")
    train(toy, copy.name, *RUN, "run.resume=true")
    for name, value in stored(averaged, STEPS).items():
        assert torch.equal(stored(copy, STEPS)[name], value), name


def test_training_is_the_same_with_an_average(toy: Path, averaged: Path, first: Path) -> None:
    plain = train(toy, "not_averaged", *RUN, "trainer.ema_decay=null", f"init_from={first}")
    for name, value in stored(averaged, STEPS, "model.safetensors").items():
        assert torch.equal(stored(plain, STEPS, "model.safetensors")[name], value), name
    assert not list(plain.rglob("ema.safetensors"))


def test_an_average_may_begin_later(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(toy, "later", "trainer.max_steps=4")
    on = ["run.resume=true", "trainer.ema_decay=0.9", "trainer.max_steps=5", "suite=none"]
    with pytest.raises(ConfigError, match=r"trainer\.ema_decay: was None, is 0\.9"):
        train(toy, "later", *on, "run.accept_changes=[trainer.max_steps]")
    with caplog.at_level(logging.WARNING):
        train(toy, "later", *on, "run.accept_changes=[trainer.max_steps, trainer.ema_decay]")
    assert "step_00000004 has no ema.safetensors: the average of weights begins with its" in caplog.text
    before, after = stored(run, 4, "model.safetensors"), stored(run, 5, "model.safetensors")
    for name, value in stored(run, 5).items():
        torch.testing.assert_close(value, torch.lerp(before[name], after[name], 1 - 5 / 14), msg=name)


def test_loading_and_evaluating_take_the_weights_that_are_asked_for(toy: Path, averaged: Path) -> None:
    for weights, name in (("model", "model.safetensors"), ("ema", "ema.safetensors")):
        loaded = vlm.load(averaged, weights=weights).model.state_dict()
        assert all(torch.equal(loaded[n], value) for n, value in stored(averaged, STEPS, name).items())
    with pytest.raises(ConfigError, match="weights=mean is not one of model, ema"):
        vlm.load(averaged, weights="mean")


def test_an_evaluation_in_training_judges_the_average(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run.name=judged", "trainer.ema_decay=0.9", "evaluation.weights=ema"]
    run = train_from(composed(tiny_overrides(toy, *words)))
    during = during_training(run, 8)
    assert evaluated(run, 8, "ema", monkeypatch) == during
    assert evaluated(run, 8, "model", monkeypatch) != during
    assert "their average over the run" in (run / "evaluation/step_00000008_ema/report.html").read_text()


def test_an_average_that_is_not_there_is_one_clear_message(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"has no ema\.safetensors: .*take weights=model"):
        vlm.load(checkpoint, weights="ema")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"cut short", r"ema\.safetensors has 9 bytes"), (None, r"ema\.safetensors is missing")],
)
def test_a_damaged_average_is_named_and_passed_over(
    toy: Path, averaged: Path, content: bytes | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = averaged.with_name(f"damaged_{content is None}")
    shutil.copytree(averaged, copy)
    path = copy / "checkpoints" / f"step_{STEPS:08d}" / "ema.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        vlm.load(copy, weights="ema")
    assert vlm.load(copy).model.logit_scale.isfinite()
    train(toy, copy.name, *RUN, "run.resume=true")
    assert "falling back to the checkpoint before it" in caplog.text
    for name, value in stored(averaged, STEPS).items():
        assert torch.equal(stored(copy, STEPS)[name], value), name


def test_an_average_of_another_model_is_refused(tmp_path: Path) -> None:
    """Hashes that fit do not make it one of this model."""
    model = tiny_loaded().model
    spec = dataclasses.replace(model.spec, init_logit_scale=3.0)
    save_weights(tmp_path / "ema.safetensors", model.state_dict(), spec)
    save_tiny(tmp_path)
    assert vlm.load(tmp_path).model.logit_scale.isfinite()
    with pytest.raises(CheckpointError, match=r"does not describe the weights beside it(.*\n)+.*ema\."):
        vlm.load(tmp_path, weights="ema")


def test_the_average_can_be_run_beside_the_model() -> None:
    """As a teacher: it follows the model, computes without gradients, and leaves the model as it is."""
    model = tiny_loaded().model.train()
    average = WeightAverage(model)
    Outside(model)
    with torch.no_grad():
        for parameter in (*model.parameters(), model.logit_scale):
            parameter.add_(1.0)
    weight = model.text_projection.weight.detach().clone()
    average.update(model, decay=0.25)
    torch.testing.assert_close(average.model.text_projection.weight, weight - 0.25)
    torch.testing.assert_close(average.model.logit_scale, model.logit_scale.detach() - 0.25)
    assert average.outside.parameters.keys() == {"logit_scale"}
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    vectors = average.model.encode_image(images)
    assert not vectors.requires_grad
    assert model.encode_image(images).requires_grad
    assert not torch.equal(vectors, model.encode_image(images))
    assert torch.equal(model.text_projection.weight, weight)
    assert model.training
    assert not average.model.training


def test_buffers_are_those_of_the_model() -> None:
    model = tiny_loaded().model
    average = WeightAverage(model)
    model.image.mean += 1
    average.update(model, decay=0.99)
    assert torch.equal(average.model.image.mean, model.image.mean)


def test_the_decay_grows_to_what_is_asked_for() -> None:
    assert [decay_at(step, 0.99) for step in (0, 8, 90)] == pytest.approx([0.1, 0.5, 0.91])
    assert decay_at(10**6, 0.99) == 0.99


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_is_refused_by_name(stage: int, tmp_path: Path) -> None:
    words = [f"trainer=deepspeed_zero{stage}", "trainer.ema_decay=0.999", "run.name=refused"]
    values = composed(tiny_overrides(tmp_path, *words))
    message = (
        rf"trainer\.ema_decay=0\.999 with trainer\.strategy=deepspeed_zero{stage}.*take trainer=ddp or fsdp2"
    )
    for start in (train_from, lambda v: plan(run_from(v))):
        with pytest.raises(ConfigError, match=message):
            start(values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.ema_decay=1.5"], r"trainer\.ema_decay=1\.5 must be in \[0, 1\], or null"),
        (["evaluation.weights=ema"], r"evaluation\.weights=ema, but trainer\.ema_decay=null"),
        (["evaluation.weights=mean"], r"evaluation\.weights='mean' is not one of 'model', 'ema'"),
    ],
)
def test_a_value_that_will_not_do_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train_from(composed(tiny_overrides(tmp_path, "run.name=refused", *overrides)))


def test_a_plan_counts_the_average(tmp_path: Path) -> None:
    def memory(*overrides: str) -> dict[str, Any]:
        words = tiny_overrides(tmp_path, *overrides)
        lines = plan(run_from(composed(words))).split("memory of a rank, MiB\n")[1].splitlines()
        return {line.split()[0]: line.split()[1] for line in lines if line.startswith("  ")}

    plain, ddp, fsdp2 = (
        memory(*words, "trainer.devices=4")
        for words in ([], ["trainer.ema_decay=0.9"], ["trainer.ema_decay=0.9", "trainer=fsdp2"])
    )
    assert "average" not in plain
    assert ddp["average"] == ddp["weights"]
    assert float(fsdp2["average"]) == pytest.approx(float(ddp["average"]) / 4, abs=2e-3)
