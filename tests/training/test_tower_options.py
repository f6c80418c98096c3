"""With activation checkpointing and torch.compile the same model is trained."""

import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import CONTEXT, EOT, VOCAB, objective_of, tiny_mapping
from torch import Tensor
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


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(EOT + 1, VOCAB, (ROWS, 8), generator=generator)
    text[:, 6] = EOT
    image = torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(image=image, text=text, caption_id=torch.arange(ROWS))


def gradients(model: DualEncoder, micro_batch_size: int | None = None) -> dict[str, Tensor | None]:
    objective = objective_of()
    output = loss_and_gradients(
        objective,
        model,
        batch(),
        encode=partial(objective.encode, model),
        micro_batch_size=micro_batch_size,
        seed=lambda number: torch.manual_seed(100 + number) and None,
        backward=lambda loss, last: loss.backward(),
    )
    return {"loss": output.total.detach(), **{name: p.grad for name, p in model.named_parameters()}}


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
        assert value is None if found[name] is None else torch.equal(found[name], value), name
    parts = 1 if micro_batch_size is None else 2
    assert counts == Counter({tower: n + 2 * parts for tower, n in expected_counts.items()})


def test_nothing_is_kept_or_run_again_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("causal")
    CHECKPOINTED.apply(model)
    monkeypatch.setattr("vlm.models.blocks.checkpoint", None)
    with torch.no_grad():
        model.encode_image(batch()["image"])


def kept_bytes(model: DualEncoder) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.encode_text(batch()["text"])
    assert out.requires_grad
    return sum(kept.values())


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


def run_command(toy: Path, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vlm.cli.train", *tiny_overrides(toy, *overrides)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def test_without_a_compiler_one_line_says_so_before_anything_is_written(toy: Path) -> None:
    done = run_command(toy, "run.name=lacking", "trainer.compile=blocks", CXX="no-such-compiler")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ConfigError: trainer.compile=blocks: ")
    assert "Traceback" not in done.stderr
    assert not (toy / "runs" / "lacking").exists()
