"""What all formats have in common: the check, the model card, whole or nothing."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exportable import checkpoint
from safetensors.torch import load_file

import vlm
from vlm.data.tokenizers import Tokenizer
from vlm.errors import CheckpointError, ConfigError, OutputError
from vlm.inference import EMA, save_weights
from vlm.inference.export import export_model, exporter
from vlm.inference.export.source import Source
from vlm.inference.foreign import names, open_clip, transformers_clip, transformers_siglip


def export(source: Path, out: Path, *, format: str = "safetensors", weights: str = "model") -> dict[str, Any]:
    """The content of `export.json`."""
    export_model(str(source), out, format=format, weights=weights)
    said: dict[str, Any] = json.loads((out / "export.json").read_text())
    return said


@pytest.mark.parametrize("module", [open_clip, transformers_clip, transformers_siglip])
def test_inverted_rules_lead_back(module: Any) -> None:
    """Each pattern with numbers and words in the place of its groups."""
    for pattern, _ in module._RULES:
        name = pattern.replace(r"(\d+)", "11").replace("([12])", "2").replace("(.+)", "a.weight")
        name = name.replace("(q|kv)", "kv").replace("(weight|bias)", "bias")
        name = name.replace(r"(token_embedding\.weight|positional_embedding|ln_final\..+)", "ln_final.bias")
        name = name.replace("\\", "")
        there = names.renamed({name: torch.zeros(1)}, module._RULES)
        assert list(there) != [name]
        assert list(names.renamed(there, names.inverted(module._RULES))) == [name]


@torch.no_grad()
def test_the_flat_file_holds_every_weight_and_the_folder_is_a_checkpoint(tmp_path: Path) -> None:
    decoder = {"layers": 1, "heads": 2, "activation": "gelu"}
    source = checkpoint(tmp_path / "source", text_decoder=decoder)
    said = export(source, tmp_path / "out")
    before, after = vlm.load(source), vlm.load(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    state = before.model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in weights.items())
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert after.model.spec == before.model.spec
    assert (said["left_out"], said["step"], said["format"]) == ([], 7, "safetensors")


def test_what_a_format_has_no_place_for_but_no_vector_needs_is_named(tmp_path: Path) -> None:
    decoder = {"layers": 1, "heads": 2, "activation": "gelu"}
    source = checkpoint(tmp_path / "source", text_decoder=decoder)
    assert export(source, tmp_path / "out", format="transformers")["left_out"] == ["text_decoder"]
    assert "Not in these files: text_decoder." in (tmp_path / "out" / "README.md").read_text()


def test_averaged_weights_are_exported_as_such(tmp_path: Path) -> None:
    state = vlm.load(checkpoint(tmp_path / "first")).model
    with_ema = tmp_path / "source"
    with_ema.mkdir()
    averaged = {name: value + 1 for name, value in state.state_dict().items()}
    save_weights(with_ema / EMA, averaged, state.spec)
    checkpoint(with_ema)
    said = export(with_ema, tmp_path / "out", weights="ema")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, averaged[name]) for name, value in weights.items())
    assert said["weights"] == "ema"
    assert said["sha256"] == json.loads((with_ema / "model.json").read_text())["files"][EMA]["sha256"]
    with pytest.raises(CheckpointError, match="take weights=model"):
        export(tmp_path / "first", tmp_path / "other", weights="ema")


@pytest.mark.parametrize("part", ["text.token_embedding.weight", "image.trunk.norm.weight"])
def test_another_vector_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    source = checkpoint(tmp_path / "source")
    original = transformers_clip.restored

    def altered(weights: Any) -> Any:
        return original({**weights, part: weights[part] * 1.001})

    monkeypatch.setattr(transformers_clip, "restored", altered)
    what = part.partition(".")[0]
    with pytest.raises(OutputError, match=rf"other vectors of {what}s .* more than 1e-05; nothing is left"):
        export(source, tmp_path / "out", format="transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_vectors_that_are_not_finite_do_not_agree(tmp_path: Path) -> None:
    loaded = vlm.load(checkpoint(tmp_path / "first"))
    with torch.no_grad():
        loaded.model.image.trunk.get_parameter("norm.bias").fill_(float("nan"))
    from tiny import save_tiny

    save_tiny(tmp_path / "source", loaded=loaded)
    with pytest.raises(OutputError, match="differ by inf"):
        export(tmp_path / "source", tmp_path / "out", format="transformers")


def test_another_tokenization_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.inference.export import to_transformers

    source, shorter = checkpoint(tmp_path / "source"), Tokenizer.with_context_length
    written = to_transformers.write_tokenizer
    monkeypatch.setattr(
        to_transformers,
        "write_tokenizer",
        lambda t, folder, padding: written(shorter(t, 5), folder, padding=padding),
    )
    with pytest.raises(OutputError, match="reads 'a photo of a cat' as the ids"):
        export(source, tmp_path / "out", format="transformers")


def test_a_library_that_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    absent = ("open_clip", "onnx", "onnxscript")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in absent else find(name, *a)
    )
    source = checkpoint(tmp_path / "source")
    said = export(source, tmp_path / "out", format="open_clip")
    assert said["check"] == "not checked: open_clip is not installed"
    assert "Not checked: open_clip is not installed." in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"needs onnx, onnxscript, .* pip install -e '.\[onnx\]'"):
        export(source, tmp_path / "onnx", format="onnx")


def test_a_library_that_cannot_open_it_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: Source, folder: Path) -> None:
        raise RuntimeError("no such model\nat all")

    chosen = dataclasses.replace(exporter.FORMATS["transformers"], open_folder=fails)
    monkeypatch.setitem(exporter.FORMATS, "transformers", chosen)
    with pytest.raises(OutputError, match="cannot open what format=transformers writes: no such model;"):
        export(checkpoint(tmp_path / "source"), tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "source")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def run_folder(tmp_path: Path) -> Path:
    """A run with one checkpoint and the results of it and of others."""
    run = tmp_path / "runs" / "toy"
    made = checkpoint(run / "checkpoints" / "step_00000007")
    config = {
        "data": {"train": {"shards": "a|b.tar"}, "global_batch_size": 64},
        "optimizer": {"_target_": "vlm.training.AdamW", "lr": 0.001},
        "objective": {"_target_": "vlm.objectives.ClipObjective"},
        "trainer": {"max_steps": 7},
    }
    (made / "config.json").write_text(json.dumps(config))
    for name, step, weights, value in (
        ("a", 7, "model", 0.75),
        ("b", 6, "model", 0.5),
        ("c", 7, "ema", 0.25),
    ):
        folder = run / "evaluation" / name
        folder.mkdir(parents=True)
        result = {"metrics": {"acc1": value}, "chance": {"acc1": 0.1}}
        content = {"step": step, "weights": weights, "results": {"held_out": result}}
        (folder / "results.json").write_text(json.dumps(content))
    return run


def test_the_model_card_tells_what_the_run_knows(tmp_path: Path) -> None:
    export(run_folder(tmp_path), tmp_path / "out", format="transformers")
    text = (tmp_path / "out" / "README.md").read_text()
    front = text.split("---\n")[1]
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip"],
    }
    assert "# license: set one" in front
    for line in (
        "# toy",
        "| learning rate | `0.001` |",
        "| pairs in a step | `64` |",
        "| data | `a\\|b.tar` |",
        "| objective | `vlm.objectives.ClipObjective` |",
        "| held_out | acc1 | 0.7500 | 0.1000 |",
    ):
        assert line in text.splitlines()
    assert "0.5000" not in text
    assert "0.2500" not in text


@pytest.mark.parametrize(
    "format", ["transformers", "safetensors", pytest.param("onnx", marks=pytest.mark.long)]
)
def test_the_code_of_a_model_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    from PIL import Image

    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="vlm[onnx] is not installed")
    export(checkpoint(tmp_path / "source"), tmp_path / "FOLDER", format=format)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 30), (200, 30, 30)).save("picture.png")
    code = (tmp_path / "FOLDER" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, "<model card>", "exec"), {})
    assert capsys.readouterr().out.strip()
