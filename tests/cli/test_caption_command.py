"""`vlm caption`: lines in the order of the pictures, going on where it was, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from generative import writer
from PIL import Image
from tiny import save_tiny, write_tiny_shards
from typed import said_by


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "writer", loaded=writer())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (20, 20), (30 * number, 0, 99)).save(folder / f"{number}.png")
    (folder / "5.jpg").write_text("no picture")
    (folder / "6.png").rename(folder / "6\u2028六.png")  # where Python would end a line, and a file does not
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_every_picture_has_a_line_and_a_page_shows_them(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "out" / "captions.jsonl", tmp_path / "page.html"
    words = [f"run={checkpoint}", f"images={pictures}", f"out={out}", f"report={page}", "batch_size=3"]
    printed = said_by(monkeypatch, "caption", *words)
    lines = lines_of(out)
    assert [line["row"] for line in lines] == list(range(8))
    assert [Path(line["key"]).name for line in lines] == sorted(path.name for path in pictures.iterdir())
    broken = next(line for line in lines if line["key"].endswith("5.jpg"))
    assert broken["caption"] is None
    assert "is no JPEG" in broken["unreadable"]
    assert all(line["caption"] is not None for line in lines if line is not broken)
    assert "7 captions" in printed
    assert "1 pictures cannot be read" in printed
    assert page.read_text().count("<figure>") == 7


@pytest.mark.parametrize("strategy", ["greedy", "beam", "nucleus"])
def test_a_command_that_was_interrupted_goes_on(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    def write(name: str, *words: str) -> str:
        given = [f"run={checkpoint}", f"images={pictures}", f"out={tmp_path}/{name}"]
        return said_by(monkeypatch, "caption", *given, f"decoding.strategy={strategy}", *words)

    write("whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    lines = whole.split(b"\n")
    (tmp_path / "cut.jsonl").write_bytes(b"\n".join(lines[:3]) + b'\n{"row": 3, "caption": "\xe8')
    shutil.copy(tmp_path / "whole.jsonl.made_by.json", tmp_path / "cut.jsonl.made_by.json")
    assert "3 lines were there" in write("cut.jsonl", "batch_size=2")
    assert (tmp_path / "cut.jsonl").read_bytes() == whole


def test_captions_of_another_model_or_decoding_are_not_taken_for_these(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"run={checkpoint}", f"images={pictures}", f"out={tmp_path}/c.jsonl"]
    said_by(monkeypatch, "caption", *words)
    printed = said_by(monkeypatch, "caption", *words, "decoding.strategy=beam")
    assert "has captions that were made with another decoding" in printed


def test_shards_are_captioned_in_their_order(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_tiny_shards(tmp_path / "shards", num_samples=12)
    said_by(monkeypatch, "caption", f"run={checkpoint}", f"images={shards}", f"out={tmp_path}/c.jsonl")
    assert [line["row"] for line in lines_of(tmp_path / "c.jsonl")] == list(range(12))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decoding.beams=0"], "decoding.beams=0 must be a whole number"),
        (["images=nothing"], "names no image; give a folder"),
        (["images=[pictures,x.tar]"], "names shards and other files"),
        (["run=tiny"], "has no text decoder (model.text_decoder=null) and cannot write captions"),
        (["out=pictures/5.jpg"], "out=pictures/5.jpg has"),
    ],
)
def test_mistakes_are_told_in_one_line(
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    (tmp_path / "pictures" / "5.jpg").write_text(
        '{"row": 0, "key": "x", "caption": "y", "unreadable": null}\n'
    )
    given = {"run": str(checkpoint), "images": "pictures", "out": "captions.jsonl"}
    given |= dict(word.split("=", 1) for word in words)
    printed = said_by(monkeypatch, "caption", *(f"{name}={value}" for name, value in given.items()))
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "captions.jsonl").exists()
