from pathlib import Path

import pytest
from exportable import checkpoint
from typed import said_by


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=onnx", "out=x"], "no value for run"),
        (["run=source", "out=x"], "no value for format"),
        (
            ["run=source", "format=coreml", "out=x"],
            "format=coreml is unknown; use transformers, open_clip, ",
        ),
        (["run=nowhere", "format=onnx", "out=x"], "run=nowhere does not exist"),
        (["run=source", "format=safetensors", "out=source"], "source' is not an empty folder"),
        (["run=source", "format=safetensors", "out=source/model.json"], "is not an empty folder"),
        (
            ["run=source", "format=safetensors", "out=x", "weights=best"],
            "weights=best is not one of model, ema",
        ),
        (["run=source", "format=safetensors", "out=x", "wieghts=ema"], "wieghts"),
        (["run=source", "format=open_clip", "out=x"], "no text tower"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "source", text=None)
    said = said_by(monkeypatch, "export", *arguments)
    assert message in said
    assert "Error: " in said
    assert not (tmp_path / "x").exists()


def test_the_command_says_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "source")
    said = said_by(monkeypatch, "export", "run=source", "format=transformers", "out=x/y")
    assert "kind      CLIPModel" in said
    assert "check     images " in said
    assert "README.md in it is a model card" in said
    assert (tmp_path / "x" / "y" / "export.json").is_file()
