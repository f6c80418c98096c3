"""`vlm report`: where it writes, and what it says of what is asked wrongly."""

from pathlib import Path

import pytest
from sweeps import Asked, Model, steps, write_sweep
from typed import said_by

ANIMALS = Asked(dataset="animals")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    questions = [
        ANIMALS,
        Asked(dataset="sketches"),
        Asked(dataset="动物", language="zh", categories=["猫", "狗"]),
    ]
    return write_sweep(
        tmp_path / "sweep", [*steps("toy", [0.4, 0.6]), Model(name="clip", skill=0.5)], questions
    )


def test_page_and_table_are_written_into_the_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = said_by(monkeypatch, "report", f"sweep={folder}")
    assert f"report: {folder}/report.html" in printed
    assert f"table: {folder}/report.md" in printed
    assert "动物" in (folder / "report.md").read_text(encoding="utf-8")
    first = (folder / "report.html").read_bytes()
    said_by(monkeypatch, "report", f"sweep={folder}")
    assert (folder / "report.html").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["cells", "report.html", "report.md"]


def test_keys_change_what_is_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by(
        monkeypatch,
        "report",
        f"sweep={folder}",
        f"out={tmp_path}/new/out",
        "baseline=clip",
        "against=toy/step_000400",
        "averages={mine: [animals]}",
        "shifts={sketches: animals}",
        "pictures=0",
    )
    assert "Error" not in said
    page = (tmp_path / "new" / "out" / "report.html").read_text(encoding="utf-8")
    assert "toy/step_000400 against clip" in page
    assert ">mine<" in page
    assert "less animals" in page
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ConfigError: no value for sweep; set it on the command line: sweep=..."),
        (["sweep=nowhere"], "ConfigError: sweep=nowhere is no folder; name the out=FOLDER of vlm sweep"),
        (
            ["sweep=SWEEP", "baseline=toy"],
            "ConfigError: baseline=toy is no checkpoint of the sweep; there are clip, ",
        ),
        (["sweep=SWEEP", "averages=[animals]"], "ConfigError: averages=['animals'] has to be a mapping"),
        (
            ["sweep=SWEEP", "averages={mine: animals}"],
            "ConfigError: averages.mine='animals' has to be a list",
        ),
        (
            ["sweep=SWEEP", "averages={mine: [x]}"],
            "ConfigError: averages.mine names no data set of the sweep",
        ),
        (
            ["sweep=SWEEP", "shifts={animals: [x]}"],
            "ConfigError: shifts.animals=['x'] has to be the data set",
        ),
        (["sweep=SWEEP", "shifts=animals"], "ConfigError: shifts='animals' has to be a mapping"),
        (["sweep=SWEEP", "pictures=-1"], "ConfigError: pictures=-1 is less than none"),
        (
            ["sweep=SWEEP", "picture=1"],
            "ConfigError: picture is not a key of the configuration; did you mean 'pictures'?",
        ),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    said = said_by(monkeypatch, "report", *[word.replace("SWEEP", str(folder)) for word in words])
    assert said.startswith(message)
    assert "\n" not in said


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("x")
    said = said_by(monkeypatch, "report", f"sweep={folder}", f"out={folder}/file")
    assert said.startswith(f"OutputError: {folder}/file")
