"""With activation checkpointing and torch.compile the same model is trained."""

import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from gloo import run_gloo
from safetensors.torch import load_file
from tiny_model import CONTEXT, EOT, VOCAB, objective_of, tiny_mapping
from torch import Tensor
from torch._dynamo.utils import counters
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, blocks_of, build_model, described
from vlm.training.accumulation import loss_and_gradients
from vlm.training.tower_options import TowerOptions
from vlm.types import Batch

ROWS, STEPS, HALF = 6, 8, 4
DROPPING = "proj_drop_rate: 0.2, drop_path_rate: 0.2, patch_drop_rate: 0.5"
VIT = [
    "++model.image.name=vit_tiny_patch16_224",
    "~model.image.options",
    f"+model.image.options={{patch_size: 8, embed_dim: 24, depth: 2, num_heads: 3, {DROPPING}}}",
]
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_positions": CONTEXT,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
}
CHECKPOINTED = TowerOptions(activation_checkpointing=True, compile=None)


def model_of(kind: str) -> DualEncoder:
    mapping = tiny_mapping("transformers" if kind in ("bert", "gpt2") else kind)
    mapping["image"]["options"] |= {"depth": 2, "proj_drop_rate": 0.3, "patch_drop_rate": 0.5}
    if kind == "bert":
        mapping["text"]["options"] |= {"hidden_dropout_prob": 0.3}
    if kind == "gpt2":
        mapping["text"]["options"] = GPT2
    torch.manual_seed(0)
    return build_model(ModelSpec.from_mapping(mapping))


def batch(text_length: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(text_length)
    text = torch.randint(EOT + 1, VOCAB, (ROWS, text_length), generator=generator)
    text[:, -2] = EOT
    image = torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(image=image, text=text, caption_id=torch.arange(ROWS))


def gradients(model: DualEncoder, micro_batch_size: int | None, *, text_length: int = 8) -> dict[str, Tensor]:
    objective = objective_of()
    output = loss_and_gradients(
        objective,
        model,
        batch(text_length),
        encode=partial(objective.encode, model),
        micro_batch_size=micro_batch_size,
        seed=lambda number: torch.manual_seed(100 + (number or 0)) and None,
        backward=lambda loss, last: loss.backward(),
    )
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.total.detach(), **found}


def count_forwards(model: DualEncoder) -> Counter[str]:
    """How often the first part of each block has run."""
    counts: Counter[str] = Counter()
    for name, tower in (("image", model.image), ("text", model.text)):
        for block in blocks_of(tower):
            first = next(iter(block.children()))
            first.register_forward_pre_hook(lambda *_, name=name: counts.update([name]))
    return counts


@pytest.mark.parametrize("micro_batch_size", [None, 4])
@pytest.mark.parametrize("kind", ["causal", "bert", "gpt2"])
def test_blocks_that_run_again_give_the_same_gradients(kind: str, micro_batch_size: int | None) -> None:
    kept, again = model_of(kind), model_of(kind)
    CHECKPOINTED.apply(again)
    assert again.state_dict().keys() == kept.state_dict().keys()
    counts, expected_counts = count_forwards(again), count_forwards(kept)
    found, expected = gradients(again, micro_batch_size), gradients(kept, micro_batch_size)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    parts = 1 if micro_batch_size is None else 2
    assert counts == Counter({tower: n + 2 * parts for tower, n in expected_counts.items()})


def test_nothing_is_kept_or_run_again_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("causal")
    CHECKPOINTED.apply(model)
    monkeypatch.setattr("vlm.models.blocks.checkpoint", None)
    with torch.no_grad():
        model.encode_image(batch()["image"])


def losses(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith(("train/", "eval/"))]
    return [row[name] for row in rows for name in names]


def train(toy: Path, *overrides: str) -> Path:
    return train_from(composed(tiny_overrides(toy, *overrides)))


@pytest.mark.parametrize("size", ["null", "5"])
def test_a_run_goes_on_with_activation_checkpointing_bit_for_bit(size: str, toy: Path) -> None:
    common = [*VIT, f"trainer.micro_batch_size={size}"]
    whole = train(toy, f"run.name=whole_{size}", *common)
    resumed = shutil.copytree(whole, whole.with_name(f"checkpointed_{size}"))
    shutil.rmtree(resumed / "checkpoints" / f"step_{STEPS:08d}")
    changed = ["run.resume=true", "trainer.activation_checkpointing=true"]
    train(toy, f"run.name={resumed.name}", *common, *changed)
    assert losses(resumed) == losses(whole)
    weights, expected = (
        load_file(run / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors") for run in (resumed, whole)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_batch_normalisation_in_a_block_is_refused_before_anything_is_written(toy: Path) -> None:
    norm = "++model.image.options.norm_layer=batchnorm2d"
    message = r"trainer\.activation_checkpointing=true with batch normalisation in image\.trunk\.layer1"
    with pytest.raises(ConfigError, match=message):
        train(toy, "run.name=bn", "trainer.activation_checkpointing=true", norm)
    assert not (toy / "runs" / "bn").exists()


def test_a_tower_without_blocks_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    model = described(ModelSpec.from_mapping(tiny_mapping("bag_of_words")))
    TowerOptions(activation_checkpointing=True, compile="blocks").check(model)
    told = [record.getMessage() for record in caplog.records]
    assert [message.split(" does nothing in ")[0] for message in told] == [
        "trainer.activation_checkpointing=true",
        "trainer.compile=blocks",
    ]
    assert all("model.text" in message for message in told)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.compile=fast", r"trainer\.compile='fast' is a str; expected 'blocks' or 'towers' or null"),
        ("trainer.compile=true", r"trainer\.compile=True is a bool; expected 'blocks' or 'towers' or null"),
        (
            "trainer.activation_checkpointing=3",
            r"trainer\.activation_checkpointing=3 is a int; expected bool",
        ),
    ],
)
def test_other_values_are_refused(override: str, message: str, toy: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy, "run.name=refused", override)


@pytest.mark.parametrize("compiled", ["blocks", "towers"])
def test_compiling_is_refused_where_weights_are_gathered_in_every_layer(compiled: str, toy: Path) -> None:
    message = rf"trainer\.compile={compiled} with trainer\.strategy=deepspeed_zero3.*fsdp2.*null"
    with pytest.raises(ConfigError, match=message):
        train(toy, "run.name=refused", "trainer=deepspeed_zero3", f"trainer.compile={compiled}")


def run_command(toy: Path, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vlm.cli.train", *tiny_overrides(toy, *overrides)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def test_without_a_compiler_one_line_says_so_before_anything_is_written(toy: Path) -> None:
    done = run_command(toy, "run.name=lacking", "trainer.compile=blocks", CXX="no-such-compiler")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ConfigError: trainer.compile=blocks: ")
    assert "Traceback" not in done.stderr
    assert not (toy / "runs" / "lacking").exists()


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler on a CPU"
)


def steps(model: DualEncoder, lengths: list[int], *, micro_batch_size: int) -> list[float]:
    """Losses of training on texts of these lengths."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for length in lengths:
        optimizer.zero_grad()
        found.append(gradients(model, micro_batch_size, text_length=length)["loss"].item())
        optimizer.step()
    return found


def compare_with_eager(compiled: Literal["blocks", "towers"], checkpointing: bool) -> None:
    eager, model = model_of("causal"), model_of("causal")
    TowerOptions(activation_checkpointing=checkpointing, compile=compiled).apply(model)
    assert model.state_dict().keys() == eager.state_dict().keys()
    programs = counters["stats"]
    found = steps(model, [8, 9], micro_batch_size=4)
    compiled_by_then = programs["unique_graphs"]
    assert compiled_by_then > 0
    found += steps(model, [7, 12, 3, 10], micro_batch_size=4)
    # Micro-batches draw their dropout twice: this is the same in programs as well.
    assert found == pytest.approx(steps(eager, [8, 9, 7, 12, 3, 10], micro_batch_size=4), rel=1e-5)
    text = batch(text_length=5)["text"]
    torch.testing.assert_close(model.eval().encode_text(text), eager.eval().encode_text(text))
    assert programs["unique_graphs"] == compiled_by_then


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize(("compiled", "checkpointing"), [("blocks", True), ("towers", False)])
def test_compiled_towers_train_the_same_and_compile_nothing_for_other_lengths(
    compiled: Literal["blocks", "towers"], checkpointing: bool, tmp_path: Path
) -> None:
    # In a process of its own: torch.compile would go through the checks of types that tests add to functions.
    run_gloo(compare_with_eager, 1, tmp_path, compiled, checkpointing)


@pytest.mark.long
@needs_compiler
def test_a_compiled_run_has_the_losses_of_an_eager_one(toy: Path) -> None:
    for name, overrides in {"eager": [], "compiled": ["trainer.compile=blocks"]}.items():
        done = run_command(toy, f"run.name={name}", "trainer.devices=2", *overrides)
        assert done.returncode == 0, done.stderr
    eager, compiled = ([float(x or 0) for x in losses(toy / "runs" / name)] for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-4)
