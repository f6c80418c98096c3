from pathlib import Path
from typing import NoReturn

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from typed import said_by

from vlm.cli.command import command, quote_value
from vlm.errors import DataError, StoppedError


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.train.shards=a/{00..41}.tar", "data.train.shards='a/{00..41}.tar'"),
        ("data.train.shards='a/{00..41}.tar'", "data.train.shards='a/{00..41}.tar'"),
        ("data.mix={}", "data.mix={}"),
        ("input=图片/表.csv", "input='图片/表.csv'"),
        ("input=图/a.csv", "input='图/a.csv'"),
        ("out=packed/déjà", "out='packed/déjà'"),
        ("caption=图", "caption='图'"),
        ('caption=["标题"]', 'caption=["标题"]'),
        ("caption=[标题,title_en]", "caption=['标题',title_en]"),
        ("caption=[json.标题_1, json.标题_2]", "caption=['json.标题_1', 'json.标题_2']"),
        ("shards=[a/{0,1}.tar,b.tar]", "shards=['a/{0,1}.tar',b.tar]"),
        ("""captions=["标题, a",'图',[图, a],{图: a}]""", """captions=["标题, a",'图',[图, a],{图: a}]"""),
        ("std=[0.5, 1,null]", "std=[0.5, 1,null]"),
        ("run.accept_changes=[]", "run.accept_changes=[]"),
        ("data.mix={a: {share: 0.5}}", "data.mix={a: {share: 0.5}}"),
        ("paths.data=${run.name}", "paths.data=${run.name}"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--help", "--help"),
    ],
)
def test_only_bare_values_that_need_it_are_quoted(typed: str, read: str) -> None:
    assert quote_value(typed) == read


def ended_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> object:
    """What a command exits with that meets an error."""

    @command("evaluate")
    def fails(config: DictConfig) -> NoReturn:
        raise error

    monkeypatch.setattr("sys.argv", ["vlm evaluate", "run=x"])
    with pytest.raises(SystemExit) as end:
        fails()
    return end.value.code


def test_a_fault_is_told_from_a_mistake_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(RuntimeError("connection closed by peer"), monkeypatch) == 70
    assert "Traceback" in (said := capfd.readouterr().err)
    assert "connection closed by peer" in said
    assert ended_by(DataError("no shards"), monkeypatch) == "DataError: no shards"  # prints it, with code 1
    assert ended_by(StoppedError("later"), monkeypatch) == 75
    assert capfd.readouterr().err == "StoppedError: later\n"


def test_before_ranks_are_joined_the_first_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert ended_by(DataError("no shards"), monkeypatch) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("captions=[json.标题_1, json.标题_2]", ["json.标题_1", "json.标题_2"]),
        ("shards=[a/{00..41}.tar, 图/*.tar]", ["a/{00..41}.tar", "图/*.tar"]),
        ("betas=[0.9, 1e-3, null]", [0.9, 0.001, None]),
        ("captions=[]", []),
    ],
)
def test_lists_are_read_as_they_were_meant(typed: str, value: list) -> None:
    assert OverridesParser.create().parse_override(quote_value(typed)).value() == value


@pytest.mark.parametrize("typed", ["datasets=[nosuch]", "datasets=nosuch"])
def test_an_absent_option_is_answered_by_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    (tmp_path / "datasets" / "of").mkdir(parents=True)
    (tmp_path / "datasets" / "of" / "mine.yaml").write_text("{}")
    where = ("checkpoints=x", f"out={tmp_path}/out")
    said = said_by(monkeypatch, "sweep", "--config-dir", str(tmp_path), typed, *where)
    assert said.startswith(
        "ConfigError: In 'sweep': datasets has no 'nosuch'; there are caltech101, cifar10, "
    )
    assert ", muge, of/mine, toy, " in said
    assert said.endswith("; a file datasets/nosuch.yaml of your own is found by --config-dir FOLDER")


@pytest.mark.parametrize("typed", ["task=knn", "+task=knn", "++task=knn", "+task.first=knn"])
def test_a_key_that_nobody_reads_is_refused(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    """Hydra would advise to add it with a plus, which then does nothing."""
    said = said_by(monkeypatch, "sweep", "checkpoints=x", "out=x", typed)
    assert said.startswith("ConfigError: task is not a key of the configuration; did you mean 'tasks'? (")


@pytest.mark.parametrize("typed", ["datasets=[7]", "datasets=[toy, null]", "datasets=null", "datasets=7"])
def test_an_option_that_is_no_name_is_refused(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    said = said_by(monkeypatch, "sweep", typed, "checkpoints=x", "out=x")
    assert said.startswith(f"ConfigError: {typed} names no option of datasets; use caltech101, cifar10, ")
