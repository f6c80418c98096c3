"""`vlm sweep`: data sets by name, and what is refused."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from tiny import save_tiny, tiny_loaded, write_tiny_shards
from typed import said_by

from vlm.cli.sweep import _definitions, _folders
from vlm.errors import ConfigError
from vlm.evaluation.datasets import TASKS
from vlm.inference import Loaded
from vlm.models import ModelSpec, build_model
from vlm.settings import config_dir

COLOURS = """colours:
  _target_: vlm.evaluation.ClassificationData
  test: {shards}
  label: json.colour
  names:
    en:
      _target_: vlm.evaluation.ClassesFromShards
      shards: {shards}
      name: json.colour
      label: json.colour
  templates:
    en: {{plain: ["{{c}}"]}}
"""


LANGUAGES = {"coco": {"en"}, "flickr30k": {"en"}, "flickr30k_cn": {"zh"}, "coco_cn": {"zh"}, "muge": {"zh"}}
"""Of data sets that have one alone."""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a sweep over one checkpoint and a data set of the user's."""
    shards = write_tiny_shards(tmp_path / "squares", num_samples=7)
    (tmp_path / "mine" / "datasets").mkdir(parents=True)
    (tmp_path / "mine" / "datasets" / "colours.yaml").write_text(COLOURS.format(shards=shards))
    save_tiny(tmp_path / "tiny")
    return [
        *("--config-dir", str(tmp_path / "mine")),
        *(f"checkpoints={tmp_path}/tiny", "datasets=[colours]", f"out={tmp_path}/out", "device=cpu"),
    ]


def test_a_data_set_of_the_users_is_swept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "1 cells are done, 0 were before, 0 failed" in said_by(monkeypatch, "sweep", *words)
    assert "0 cells are done, 1 were before, 0 failed" in said_by(monkeypatch, "sweep", *words)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {(row["checkpoint"], row["dataset"], row["language"]) for row in rows} == {
        ("tiny", "colours", "en")
    }


@pytest.mark.long
def test_a_sweep_that_is_killed_goes_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "tiny", tmp_path / "other")
    several = [f"checkpoints={tmp_path}/*" if word.startswith("checkpoints=") else word for word in words]
    process = subprocess.Popen([sys.executable, "-m", "vlm.cli.main", "sweep", *several])
    while not list((tmp_path / "out").rglob("cells/**/*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    said = said_by(monkeypatch, "sweep", *several)
    done, kept = map(int, re.match(r"(\d+) cells are done, (\d+) were before, 0 failed", said).groups())
    assert done + kept == 2
    assert kept >= 1


def test_folders_of_clip_benchmark_are_found_by_their_root(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "wds_vtab-squares"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("red\ngreen\nblue\ngrey\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} square\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    (tmp_path / "squares" / "00000.tar").rename(folder / "test" / "0.tar")
    asked = [word for word in words[2:] if not word.startswith("datasets=")]
    for names in ("null", "[vtab/squares]"):
        root = f"{tmp_path}/data/wds_{{name}}"
        given = (f"clip_benchmark.root={root}", f"clip_benchmark.names={names}")
        said = said_by(monkeypatch, "sweep", *asked, *given, f"out={tmp_path}/{len(names)}")
        assert "1 cells are done" in said, said
    files = {path.name for path in (tmp_path / "4" / "cells").rglob("*.json")}
    assert files == {"vtab-squares.zeroshot_classification.en.own.json"}


def test_a_failed_cell_ends_the_command_with_an_error(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = tmp_path / "mine" / "datasets" / "colours.yaml"
    definition.write_text(
        definition.read_text().replace("label: json.colour\n  names", "label: json.no\n  names")
    )
    said = said_by(monkeypatch, "sweep", *words)
    assert "0 cells are done, 0 were before, 1 failed" in said
    assert "1 cells failed, the first is tiny colours zeroshot_classification en plain: DataError" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("datasets=[colours]", "datasets=[]"), "no data set is named"),
        (("{c}", "a photo"), "has no {c}, where the class name goes"),
        (("ClassificationData", "Retrieval"), "datasets.colours"),
        (("ClassificationData", "ClassesFromText"), "datasets.colours"),
        (("names:", "nmaes:"), "nmaes"),
        (("colours:\n", "colours:\nother: 3\nmore:\n"), "no _target_; a file of datasets has names"),
        (("templates:\n    en", "templates:\n    zh"), "'en' has names and no templates"),
        (("[colours]", "[colurs]"), "colurs"),
        (("colours:\n  ", "  "), "without a name; write the name of the data set above it, and indent"),
        (("ClassificationData", "ClasificationData"), "did you mean vlm.evaluation.ClassificationData?"),
        (("json.colour", "json.color"), "json.colour"),
        (("checkpoints=", "checkpoints=no/"), "matches nothing"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    message: str,
) -> None:
    definition = tmp_path / "mine" / "datasets" / "colours.yaml"
    definition.write_text(definition.read_text().replace(*change))
    said = said_by(monkeypatch, "sweep", *(word.replace(*change) for word in words))
    assert message in said.splitlines()[-1], said


def test_a_task_that_does_not_exist_is_named(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by(monkeypatch, "sweep", *words, "tasks=[zeroshot]")
    assert "tasks: there is no 'zeroshot'; there are zeroshot_classification" in said


def test_a_language_that_no_data_set_has_is_named(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by(monkeypatch, "sweep", *words, "languages=[fr,en]")
    assert said == "ConfigError: languages: none of the data sets has 'fr'; there is en"
    assert "1 cells are done" in said_by(monkeypatch, "sweep", *words, "languages=en")


@pytest.mark.parametrize("key", ["out", "cache"])
def test_a_place_that_is_a_file_is_refused_before_any_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        said = said_by(monkeypatch, "sweep", *words, f"{key}={place}")
        assert said == f"ConfigError: {key}={place}: {tmp_path}/file is no folder; name another"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["out", "cache"])
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != closed)  # root may write anywhere
    said = said_by(monkeypatch, "sweep", *words, f"{key}={closed}/new")
    assert said == f"ConfigError: {key}={closed}/new: {closed} cannot be written to; name another folder"
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_asks_nothing_says_so(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded()
    spec = ModelSpec.from_mapping(loaded.model.spec.to_mapping() | {"text": None})
    shutil.rmtree(tmp_path / "tiny")
    save_tiny(tmp_path / "tiny", loaded=Loaded(build_model(spec), loaded.preprocess, None))
    said = said_by(monkeypatch, "sweep", *words)
    assert "0 cells are done, 0 were before, 0 failed" in said
    assert "nothing was asked: the checkpoints lack what the questions need, such as a text tower" in said


@pytest.mark.parametrize(
    "file", sorted(Path(config_dir(), "datasets").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_data_set_offers_questions(file: Path) -> None:
    node = OmegaConf.create({"datasets": OmegaConf.load(file), "paths": {"data": "data"}})
    nodes = OmegaConf.to_container(node, resolve=True)["datasets"]
    none = {"root": None, "names": None, "language": "en"}
    found = _definitions({"datasets": nodes, "clip_benchmark": none})
    assert all(name.startswith(file.stem) for name in found)
    tasks = [task for definition in found.values() for task in definition.dataset.tasks()]
    assert {task.language for task in tasks} - {None} == LANGUAGES.get(file.stem, {"en", "zh"})
    assert {task.name for task in tasks} <= set(TASKS)


def test_imagenet_has_a_name_for_each_class_in_both_languages() -> None:
    node = OmegaConf.load(Path(config_dir(), "datasets", "imagenet.yaml"))["imagenet"]
    english, chinese = (node.names[language].names for language in ("en", "zh"))
    assert list(english) == list(chinese)
    assert len(english) == 1000
    assert (english.n01440764, chinese.n01440764) == ("tench", "丁鲷")
    assert (english.n15075141, chinese.n15075141) == ("toilet paper", "卫生纸")
    assert all(len(sentences) == 80 for own in node.templates.values() for sentences in own.values())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"root": None, "names": ["cars"]}, "names needs clip_benchmark.root"),
        ({"root": "data/wds", "names": None}, "has no {name}"),
        ({"root": "no/wds_{name}", "names": None}, "there is no such folder"),
        ({"root": "https://hub/wds_{name}", "names": None}, "is an address; download"),
    ],
)
def test_a_root_that_leads_nowhere_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _folders(asked)
