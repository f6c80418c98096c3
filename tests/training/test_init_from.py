import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import composed, tiny_overrides

import vlm
from vlm.cli.train import train_from
from vlm.errors import CheckpointError, ConfigError
from vlm.inference import read_weights, save_model

SHORT = ["suite=none", "logger=none", "trainer.max_steps=2", "schedule.warmup_steps=1"]
VIT = [
    "model.image.name=vit_tiny_patch16_224",
    "~model.image.options",
    "+model.image.options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, pre_norm: true}",
]


def train(toy: Path, name: str, *overrides: str) -> Path:
    return train_from(composed(tiny_overrides(toy, f"run.name={name}", *SHORT, *overrides)))


def checkpoint(run: Path, step: int = 2) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


@pytest.fixture(scope="module")
def first(toy: Path) -> Path:
    """A run whose weights others start from."""
    return train(toy, "first", *VIT)


def test_a_new_run_starts_with_the_weights_at_step_0(
    toy: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, torch.Tensor]] = []
    from vlm.training.module import TrainingModule

    def note(module: TrainingModule) -> None:
        started.append({name: value.clone() for name, value in module.weights().items()})
        assert module.step == 0
        optimizer = module.optimizers()
        assert not optimizer.optimizer.state  # type: ignore[union-attr]

    monkeypatch.setattr(TrainingModule, "on_train_start", note)
    train(toy, "second", *VIT, f"init_from={first}", "run.seed=5")
    expected = read_weights(checkpoint(first))
    assert started[0].keys() == expected.keys()
    assert all(torch.equal(started[0][name], expected[name]) for name in expected)


def test_the_tokenizer_is_the_checkpoints(toy: Path, first: Path) -> None:
    run = train(toy, "own_tokenizer", *VIT, f"init_from={checkpoint(first)}", "tokenizer.vocab_size=300")
    assert vlm.load(run).tokenizer.vocab_size == vlm.load(first).tokenizer.vocab_size > 300


def test_resume_goes_on_from_the_checkpoint_and_says_so(
    toy: Path, first: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*VIT, f"init_from={first}", "trainer.max_steps=4", "checkpoint.every_n_steps=2"]
    whole = train(toy, "whole", *overrides)
    cut = toy / "runs" / "cut_init"
    shutil.copytree(whole, cut)
    shutil.rmtree(checkpoint(cut, 4))
    moved = [*overrides[:-3], "init_from=elsewhere", *overrides[-2:]]  # where it was is of no concern then
    with caplog.at_level("INFO"):
        train(toy, "cut_init", *moved, "run.resume=true")
    assert "step_00000002; init_from=elsewhere is where the run began" in caplog.text
    one, two = read_weights(checkpoint(whole, 4)), read_weights(checkpoint(cut, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.text.activation=quick_gelu"], r"activation of the text tower +quick_gelu +gelu"),
        (["+model.image.options.act_layer=quick_gelu"], r"activation of the image tower +quick_gelu +gelu"),
        (["model.text.heads=4"], r"model\.text\.heads +4 +3"),
        (["model.image.mean=[0.5, 0.5, 0.5]"], r"model\.image\.mean +\[0\.5, 0\.5, 0\.5\] +\[0\.86, "),
        (["model.embed_dim=8"], r"model\.embed_dim +8 +16"),
        (["model.image.options.depth=2"], r"model\.image\.options\.depth +2 +1"),
        (
            ["model.image.image_size=64"],
            r"image_size needs .*\(1, 65, 16\).*resize_positions=true",
        ),
        (["model.text.context_length=32"], r"model\.text\.context_length needs .*\(32, 24\).*\(64, 24\)"),
        (["model.image.pretrained=true"], r"init_from=.* and model\.image\.pretrained"),
    ],
)
def test_a_contradiction_is_refused_with_both_values(
    toy: Path, first: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy, "refused", *VIT, f"init_from={first}", *overrides)
    assert not (toy / "runs" / "refused").exists()


def test_another_spelling_of_the_same_activation_is_no_contradiction(toy: Path, first: Path) -> None:
    train(toy, "spelt", *VIT, f"init_from={first}", "+model.image.options.act_layer=gelu")
    train(toy, "dropping", *VIT, f"init_from={first}", "+model.image.options.drop_path_rate=0.1")


def test_positions_are_resized_when_asked(toy: Path, first: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = ["model.image.image_size=64", "model.text.context_length=32", "resize_positions=true"]
    with caplog.at_level("INFO"):
        run = train(toy, "resized", *VIT, f"init_from={first}", *sizes)
    assert "image.trunk.pos_embed resized from (1, 17, 16) to (1, 65, 16)" in caplog.text
    loaded = vlm.load(run)
    assert loaded.tokenizer.context_length == 32
    assert loaded.preprocess.image_size == 64


def altered(run: Path, folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint like that of `run`, with other weights."""
    loaded = vlm.load(run)
    save_model(
        folder, weights=weights, spec=loaded.model.spec, preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer, step=0, config={},
    )  # fmt: skip
    return folder


def test_weights_that_do_not_fit_are_listed_before_the_run_has_a_folder(
    toy: Path, first: Path, tmp_path: Path
) -> None:
    weights = read_weights(checkpoint(first))
    weights["image.trunk.stranger"] = weights.pop("text.ln_final.bias")
    folder = altered(first, tmp_path / "altered", weights)
    with pytest.raises(CheckpointError, match=r"text\.ln_final\.bias +\(24,\) +missing"):
        train(toy, "unlisted", *VIT, f"init_from={folder}")
    assert not (toy / "runs" / "unlisted").exists()


def test_a_vocabulary_larger_than_the_tokenizers_is_kept(toy: Path, first: Path, tmp_path: Path) -> None:
    loaded = vlm.load(first)
    weights = dict(loaded.model.state_dict())
    embedding = weights["text.token_embedding.weight"]
    weights["text.token_embedding.weight"] = torch.cat([embedding, embedding[:5]])
    text = dataclasses.replace(loaded.model.spec.text, vocab_size=len(embedding) + 5)
    save_model(
        tmp_path / "wide", weights=weights, spec=dataclasses.replace(loaded.model.spec, text=text),
        preprocess=loaded.preprocess, tokenizer=loaded.tokenizer, step=0, config={},
    )  # fmt: skip
    overrides = [*VIT, f"init_from={tmp_path / 'wide'}", "checkpoint.every_n_steps=1"]
    run = train(toy, "wide", *overrides)
    shutil.rmtree(checkpoint(run, 2))
    train(toy, "wide", *overrides, "run.resume=true")
    assert vlm.load(run).model.spec.text.vocab_size == len(embedding) + 5


def test_another_preprocessing_is_said(toy: Path, first: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(toy, "squashed", *VIT, f"init_from={first}", "data.preprocess.resize_mode=squash")
    assert (
        "data.preprocess.resize_mode=squash, but the weights of init_from were trained with shortest"
        in caplog.text
    )


def test_pretrained_image_weights_begin_a_run_and_are_not_read_at_resume(
    toy: Path, first: Path, tmp_path: Path
) -> None:
    trunk = {
        name.removeprefix("image.trunk."): value
        for name, value in read_weights(checkpoint(first)).items()
        if name.startswith("image.trunk.")
    }
    path = tmp_path / "tower.pt"
    torch.save(trunk, path)
    overrides = [*VIT, f"model.image.pretrained={path}", "optimizer.lr=1e-9", "checkpoint.every_n_steps=1"]
    run = train(toy, "warm", *overrides)
    begun = vlm.load(checkpoint(run, 1)).model.image.trunk.state_dict()
    assert all(torch.allclose(begun[name], trunk[name], atol=1e-6) for name in trunk)
    shutil.rmtree(checkpoint(run, 2))
    path.unlink()
    train(toy, "warm", *overrides, "run.resume=true")
    assert checkpoint(run, 2).is_dir()
    with pytest.raises(ConfigError, match=r"tower\.pt' does not exist"):
        train(toy, "cold", *overrides)
    assert not (toy / "runs" / "cold").exists()


def test_a_folder_without_checkpoint_is_named(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        train(toy, "nothing", *VIT, f"init_from={tmp_path}")


@pytest.mark.parametrize(("key", "value"), [("activation", "quick_gelu"), ("heads", 4)])
def test_a_description_altered_by_hand_is_refused_with_both_values(
    toy: Path, first: Path, tmp_path: Path, key: str, value: Any
) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(checkpoint(first), folder)
    content = json.loads((folder / "model.json").read_text())
    was, content["model"]["text"][key] = content["model"]["text"][key], value
    (folder / "model.json").write_text(json.dumps(content))
    message = rf"model\.text\.{key} +{value} +{was}"
    with pytest.raises(CheckpointError, match=message):
        vlm.load(folder)
    with pytest.raises(CheckpointError, match=message):
        train(toy, "edited", *VIT, f"init_from={folder}")
