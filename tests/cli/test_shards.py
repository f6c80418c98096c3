"""`vlm shards` as a user types it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from picture_tables import write_table
from small_shards import image_bytes, write_shards
from tiny import tiny_tokenizer

from vlm.cli.shards import VERBS


def shards(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlm.cli.main", "shards", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_pack_index_check_and_preview_follow_each_other(tmp_path: Path) -> None:
    write_table(tmp_path, 30, broken={3: None})
    done = shards(
        "pack", "input=table.csv", "out=out", "caption=title", "workers=2", "max_samples=10", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "image=filepath caption=title" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("29 samples in 3 shards in out (")
    assert lines[1] == "1 rows were skipped; out/skipped.tsv says which and why"
    assert lines[2] == "train on them with: data.train.shards='out/*.tar' data.train.captions=txt"

    (tmp_path / "out/00001.index.parquet").unlink()
    done = shards("index", "shards=out/{00000..00002}.tar", folder=tmp_path)
    assert done.stdout.splitlines() == ["29 samples in 3 shards", "index: out"]
    assert (tmp_path / "out/00001.index.parquet").exists()

    done = shards("check", "shards=out/*.tar", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "29 samples in 3 shards" in done.stdout
    assert json.loads((tmp_path / "shards_check.json").read_text())["errors"] == 0

    done = shards("preview", "shards=out/*.tar", "captions=json.title_zh", folder=tmp_path)
    assert done.stdout == "24 samples are shown in preview.png\n"


def test_the_line_that_pack_prints_can_be_typed(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(image_bytes((9, 9, 9)))
    table = "filepath,标题_1,标题_2\n1.png,一只猫,猫在桌上\n"
    (tmp_path / "table.csv").write_text(table, encoding="utf-8")
    done = shards("pack", "input=table.csv", "out=out", "caption=[标题_1,标题_2]", folder=tmp_path)
    line = done.stdout.splitlines()[-1]
    typed = shlex.split(line.removeprefix("train on them with: "))
    assert typed == ["data.train.shards=out/*.tar", "data.train.captions=[json.标题_1, json.标题_2]"]
    values = [argument.removeprefix("data.train.") for argument in typed]
    done = shards("check", *values, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "with a caption in json.标题_2" in done.stdout


def test_check_exits_with_1_where_training_would_replace_or_stop(tmp_path: Path) -> None:
    write_shards(tmp_path, [4], change={"000002": {"png": b"", "txt": b"x"}})
    done = shards("check", "shards=*.tar", folder=tmp_path)
    assert done.returncode == 1
    assert "unreadable image" in done.stdout
    assert "00000.tar/000002: " in done.stdout
    assert "not counted: give tokenizer_path=" in done.stdout
    assert done.stderr == ""


def test_check_measures_captions_with_a_tokenizer(tmp_path: Path) -> None:
    write_shards(tmp_path, [4])
    tiny_tokenizer().save(tmp_path / "tokenizer.json")
    done = shards("check", "shards=*.tar", "tokenizer_path=tokenizer.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "length of captions in tokens" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, tmp_path: Path) -> None:
    done = shards(verb, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"vlm shards {verb}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "out=o"], "no value for input"),
        (["pack", "input=none.csv", "out=o"], "input=none.csv does not exist"),
        (["pack", "input=x", "out=o", "verify=all"], "verify='all' is not one of 'header', 'decode'"),
        (["pack", "input=x", "out=o", "worker=2"], "worker"),
        (["check", "shards=none/*.tar"], "matches no file"),
        (["preview", "shards=none/*.tar"], "matches no file"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = shards(*arguments, folder=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
