"""Every strategy trains the same model, and goes on from checkpoints of others, on any number of ranks."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from strategies import HAS_DEEPSPEED, needs_deepspeed, runnable
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.errors import ConfigError
from vlm.training.engines import STRATEGIES

TRAIN = Path(__file__).parents[1] / "deepspeed_cpu.py"
HALF, STEPS = 10, 20
RUN = [
    f"trainer.max_steps={STEPS}",
    f"checkpoint.every_n_steps={HALF}",
    f"evaluation.every_n_steps={STEPS}",
    "++model.image.options.stem_width=7",  # weights that no number of ranks divides
    "optimizer.image_layer_decay=0.7",  # many groups of parameters
    "optimizer.text_layer_decay=0.8",
]
# Who goes on from whose checkpoint on four ranks: each strategy writes on two and reads on four.
NEXT = {"ddp": "fsdp2", "fsdp2": "ddp"}
if HAS_DEEPSPEED:
    NEXT = {
        "ddp": "deepspeed_zero3",
        "deepspeed_zero3": "deepspeed_zero2",
        "deepspeed_zero2": "ddp",
        "fsdp2": "deepspeed_zero1",
        "deepspeed_zero1": "fsdp2",
    }


class Leg:
    """A run from its last checkpoint to the end, in processes of its own."""

    def __init__(self, toy: Path, name: str, *overrides: str) -> None:
        self.run = toy / "runs" / name
        folder = toy / "keys" / f"{name}_{'_'.join(overrides).replace('/', '')}"
        folder.mkdir(parents=True)
        words = tiny_overrides(toy, *RUN, f"run.name={name}", "run.resume=true", *overrides)
        environment = os.environ | {"KEYS": str(folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(TRAIN), *words], env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.keys: dict[int, list[str]] = {}
        for path in sorted(folder.glob("*.json")):
            self.keys.setdefault(int(path.name[:4]) + 1, []).extend(json.loads(path.read_text()))

    def column(self, name: str) -> list[float]:
        with (self.run / "metrics.csv").open(newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row[name]]

    def file(self, step: int, name: str) -> Path:
        return self.run / "checkpoints" / f"step_{step:08d}" / name


def copied(leg: Leg, name: str) -> str:
    """Another run at the first checkpoint of this one."""
    shutil.copytree(leg.run, leg.run.with_name(name))
    shutil.rmtree(leg.run.with_name(name) / "checkpoints" / f"step_{STEPS:08d}")
    return name


def assert_same_curve(leg: Leg, expected: Leg) -> None:
    assert leg.column("train/loss") == pytest.approx(expected.column("train/loss"), rel=1e-5)
    assert leg.column("train/grad_norm") == pytest.approx(expected.column("train/grad_norm"), rel=1e-4)
    assert leg.column("train/logit_scale") == pytest.approx(expected.column("train/logit_scale"), rel=1e-6)
    weights, others = (load_file(x.file(STEPS, "model.safetensors")) for x in (leg, expected))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=2e-5, msg=name)


def assert_same_moments(leg: Leg, expected: Leg, *, step: int) -> None:
    moments, others = (load_file(x.file(step, "optimizer.safetensors")) for x in (leg, expected))
    assert moments.keys() == others.keys()
    for name, moment in moments.items():
        assert (moment - others[name]).norm() <= 1e-3 * others[name].norm() + 1e-8, name
        assert not name.startswith("step/") or moment == step


@pytest.fixture(scope="module")
def one_process(toy: Path) -> Leg:
    return Leg(toy, "one_process", "trainer.devices=1")


@pytest.mark.long
@pytest.mark.parametrize("strategy", runnable(*STRATEGIES))
def test_two_ranks_are_one_process_and_go_on_as_one_and_as_four(
    strategy: str, toy: Path, one_process: Leg
) -> None:
    two = Leg(toy, f"{strategy}_2", f"trainer={strategy}", "trainer.devices=2")
    assert two.keys == one_process.keys
    assert_same_curve(two, one_process)
    assert_same_moments(two, one_process, step=HALF)
    assert evaluated(two) == json.loads(two.file(STEPS, "evaluation.json").read_text())

    one = Leg(toy, copied(two, f"{strategy}_1"), "trainer.devices=1")
    other = [f"trainer={NEXT[strategy]}", "trainer.devices=4", "trainer.micro_batch_size=3"]
    other += ["trainer.activation_checkpointing=true"]
    four = Leg(toy, copied(two, f"{strategy}_4"), *other)
    for resumed in (one, four):
        assert resumed.keys == {step: keys for step, keys in one_process.keys.items() if step > HALF}
        assert_same_curve(resumed, one_process)
        assert_same_moments(resumed, one_process, step=STEPS)


def evaluated(leg: Leg) -> dict[str, float]:
    """Metrics by `vlm evaluate` of the last checkpoint, named as in training."""
    words = ["-m", "vlm.cli.main", "evaluate", f"run={leg.run}", "device=cpu"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((leg.run / "evaluation" / f"step_{STEPS:08d}" / "results.json").read_text())
    return {f"eval/{name}/{k}": v for name, r in results["results"].items() for k, v in r["metrics"].items()}


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_running_statistics_are_those_of_the_checkpoint(strategy: str, toy: Path) -> None:
    options = "++model.image.options.norm_layer=batchnorm2d"
    two = Leg(toy, f"{strategy}_running", f"trainer={strategy}", "trainer.devices=2", options)
    assert evaluated(two) == json.loads(two.file(STEPS, "evaluation.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("strategy", runnable("fsdp2", "deepspeed_zero2", "deepspeed_zero3"))
def test_in_bf16_a_checkpoint_holds_the_weights_that_are_stepped(
    strategy: str, toy: Path, one_process: Leg
) -> None:
    half = [f"trainer={strategy}", "trainer.devices=2", "trainer.precision=bf16-mixed", "suite=none"]
    whole = Leg(toy, f"{strategy}_bf16", *half)
    again = "trainer.activation_checkpointing=true"  # blocks that run again give the same bits
    resumed = Leg(toy, copied(whole, f"{strategy}_bf16_resumed"), *half, again)
    assert resumed.column("train/loss") == whole.column("train/loss")
    for name in ("model.safetensors", "optimizer.safetensors"):
        later, once = (load_file(leg.file(STEPS, name)) for leg in (resumed, whole))
        for key, value in once.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, later[key]), key
    weight = load_file(whole.file(STEPS, "model.safetensors"))["text.token_embedding.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
    assert whole.column("train/loss") == pytest.approx(one_process.column("train/loss"), rel=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("strategy", runnable("fsdp2", "deepspeed_zero3"))
def test_one_device_is_enough(strategy: str, toy: Path, one_process: Leg) -> None:
    alone = Leg(toy, f"{strategy}_alone", f"trainer={strategy}", "trainer.devices=1", "suite=none")
    assert_same_curve(alone, one_process)


SIGMOID = ["objective=siglip", "model.init_logit_bias=-2.0", "suite=none"]


@pytest.fixture(scope="module")
def sigmoid_in_one_process(toy: Path) -> Leg:
    return Leg(toy, "sigmoid_one_process", *SIGMOID, "trainer.devices=1")


@pytest.mark.long
@pytest.mark.parametrize("strategy", runnable("ddp", "fsdp2", "deepspeed_zero2"))
def test_two_ranks_are_one_process_with_a_sigmoid_and_its_bias(
    strategy: str, toy: Path, sigmoid_in_one_process: Leg
) -> None:
    two = Leg(toy, f"{strategy}_sigmoid", *SIGMOID, f"trainer={strategy}", "trainer.devices=2")
    assert_same_curve(two, sigmoid_in_one_process)
    bias = load_file(two.file(STEPS, "model.safetensors"))["logit_bias"]
    assert abs(bias.item() + 2.0) > 1e-4  # it is trained


def run_of(toy: Path, name: str, *overrides: str) -> None:
    train_from(composed(tiny_overrides(toy, f"run.name={name}", *overrides)))


def test_a_strategy_without_its_package_is_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "deepspeed" else found(name, *rest)
    )
    with pytest.raises(
        ConfigError, match=r"trainer\.strategy=deepspeed_zero2 needs .*'\.\[deepspeed\]'.*fsdp2"
    ):
        run_of(toy, "lacking", "trainer=deepspeed_zero2")
    assert not (toy / "runs" / "lacking").exists()


@needs_deepspeed
def test_deepspeed_without_a_gpu_is_refused(toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy=deepspeed_zero1 needs GPUs.*fsdp2 or ddp"):
        run_of(toy, "lacking", "trainer=deepspeed_zero1", "trainer.devices=2")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_changes_one_key(strategy: str) -> None:
    def trainer(name: str) -> Any:
        return composed(["experiment=toy", f"trainer={name}"])["trainer"]

    assert trainer(strategy) == trainer("ddp") | {"strategy": strategy}
