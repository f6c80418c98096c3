"""`vlm negatives` from shards to sidecars: alignment, going on, refusals, the report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from negative_rows import negative_rows
from small_shards import image_bytes, sample, write_tar

from vlm.cli import main as vlm_command
from vlm.data.negatives import parse_negatives

NOUNS = ["man", "dog", "cat", "horse", "owl", "sheep"]
THINGS = ["车", "狗", "猫", "书", "伞", "碗"]
COLOURS = [("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("white", "白色")]


def members(number):
    colour, colour_zh = COLOURS[number % 4]
    noun, other = NOUNS[number % 6], NOUNS[(number // 3 + 1 + number) % 6]
    record = {
        "en": [f"A {colour} {noun} sits on a log.", f"a {noun} of a {colour} kind behind a white {other}"],
        "zh": f"一个{colour_zh}的{THINGS[number % 6]}在桌子上",
    }
    return {
        "png": image_bytes((number % 256, 80, 40)),
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }


def write(folder, sizes=(18, 15, 12), *, change=None):
    number = 0
    for shard, size in enumerate(sizes):
        samples = {f"{n:06d}": members(n) for n in range(number, number + size)}
        samples.update({key: value for key, value in (change or {}).items() if key in samples})
        write_tar(folder / f"{shard:05d}.tar", samples)
        number += size
    return folder


def words(folder, *more):
    return [
        f"data={folder}/*.tar",
        "captions=[json.en,json.zh]",
        "workers=1",
        f"report={folder}/report",
        *more,
    ]


def run(monkeypatch, *arguments):
    """The message that it ends with, if any."""
    monkeypatch.setattr(sys, "argv", ["vlm", "negatives", *arguments])
    try:
        vlm_command.main()
    except SystemExit as error:
        return str(error.code)
    return None


def rows_of(folder, name="negatives"):
    return {
        path.name: parse_negatives(path.read_bytes()) for path in sorted(folder.glob(f"*.{name}.parquet"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards with negatives."""
    folder = write(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, *words(folder)) is None
    return folder


def copied(made, folder):
    """The shards alone."""
    folder.mkdir()
    for path in made.glob("*.tar"):
        shutil.copy(path, folder)
    return folder


def test_every_sample_has_a_row_and_every_caption_negatives(made):
    number = 0
    for size, negatives in zip((18, 15, 12), rows_of(made).values(), strict=True):
        assert negatives.keys.to_pylist() == [f"{n:06d}" for n in range(number, number + size)]
        assert (negatives.origin.maker, negatives.origin.seed) == ("rules", "0")
        for row in negative_rows(negatives):
            captions = [*json.loads(members(number)["json"])["en"], json.loads(members(number)["json"])["zh"]]
            assert {negative.caption for negative in row} == set(captions)
            assert all(negative.negative not in captions for negative in row)
            number += 1
    assert len({negatives.origin.made_by for negatives in rows_of(made).values()}) == 1


def test_a_broken_sample_has_a_row_without_negatives(tmp_path, monkeypatch):
    broken = {"000003": {"json": b"{", "png": b"no"}, "000005": {"png": image_bytes((1, 2, 3))}}
    folder = write(tmp_path / "shards", (10,), change=broken)
    assert run(monkeypatch, *words(folder)) is None
    (negatives,) = rows_of(folder).values()
    assert [
        key for key, row in zip(negatives.keys.to_pylist(), negative_rows(negatives), strict=True) if not row
    ] == [
        "000003",
        "000005",
    ]
    assert len(negatives) == 10
    report = json.loads((folder / "report" / "report.json").read_text())
    assert (report["samples"], report["without_caption"]) == (10, 2)


def test_a_shard_that_is_cut_off_keeps_its_rows(tmp_path, monkeypatch, made):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder, "name=before")) is None
    shard = folder / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:12000])
    assert run(monkeypatch, *words(folder, "name=after")) is None
    rows = negative_rows(rows_of(folder, "after")["00001.after.parquet"])
    assert len(rows) == 15
    assert rows[0]
    assert not rows[-1]


@pytest.mark.parametrize("workers", [2, 3])
def test_processes_change_nothing(tmp_path, monkeypatch, made, workers):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder, f"workers={workers}")) is None
    for path in made.glob("*.negatives.parquet"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_killed_command_goes_on_and_makes_the_same(tmp_path, made):
    folder = copied(made, tmp_path / "shards")
    command = [sys.executable, "-m", "vlm.cli.main", "negatives", *words(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (folder / "00000.negatives.parquet").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.negatives.parquet")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for path in made.glob("*.negatives.parquet"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert set(begun) <= {path.name for path in made.glob("*.negatives.parquet")}
    counts = json.loads((folder / "report" / "report.json").read_text())
    assert counts == json.loads((made / "report" / "report.json").read_text())


def test_shards_that_are_done_are_not_made_again(tmp_path, monkeypatch, made, capsys):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder)) is None
    first = capsys.readouterr().out
    (folder / "00001.negatives.parquet").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.negatives.parquet")}
    assert run(monkeypatch, *words(folder)) is None
    again = capsys.readouterr().out
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert (folder / "00001.negatives.parquet").read_bytes() == (
        made / "00001.negatives.parquet"
    ).read_bytes()
    assert [line for line in again.splitlines() if "this time" not in line] == [
        line for line in first.splitlines() if "this time" not in line
    ]


def reordered(shard, keys):
    samples = {key: members(int(key)) for key in keys}
    write_tar(shard, samples)
    for index in shard.parent.glob(f"{shard.stem}.index.parquet"):
        assert index.stat().st_mtime_ns < shard.stat().st_mtime_ns


@pytest.mark.parametrize("last", [18, 2])
@pytest.mark.parametrize("is_newer", [True, False])
def test_a_shard_that_was_written_in_another_order_is_made_again(tmp_path, monkeypatch, made, last, is_newer):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder)) is None
    shard, sidecar = folder / "00000.tar", folder / "00000.negatives.parquet"
    keys = rows_of(folder)[sidecar.name].keys.to_pylist()
    turned = [*keys[:-last], *reversed(keys[-last:])]
    reordered(shard, turned)
    if not is_newer:
        os.utime(shard, (0, 0))
    other = (folder / "00001.negatives.parquet").stat().st_mtime_ns
    assert run(monkeypatch, *words(folder)) is None
    found = rows_of(folder)[sidecar.name]
    only_first_are_compared = not is_newer and last == 2
    assert found.keys.to_pylist() == (keys if only_first_are_compared else turned)
    before = dict(zip(keys, negative_rows(rows_of(made)[sidecar.name]), strict=True))
    assert negative_rows(found) == [before[key] for key in found.keys.to_pylist()]
    assert (folder / "00001.negatives.parquet").stat().st_mtime_ns == other


def test_a_line_of_the_record_that_was_cut_off_is_made_again(tmp_path, monkeypatch, made):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder)) is None
    record = folder / "report" / "shards.jsonl"
    report = (folder / "report" / "report.json").read_text()
    record.write_text(record.read_text()[:-40])
    assert run(monkeypatch, *words(folder)) is None
    assert (folder / "report" / "report.json").read_text() == report


@pytest.mark.parametrize("setting", ["seed=1", "per_caption=2", "maker.rules=[shuffle]", "captions=json.en"])
def test_negatives_of_another_making_are_refused(tmp_path, monkeypatch, made, setting):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder)) is None
    message = run(monkeypatch, *words(folder, setting))
    assert "00000.negatives.parquet holds negatives by maker=rules with seed=0" in message
    assert "name=" in message
    assert run(monkeypatch, *words(folder, setting, "name=others")) is None


def test_a_file_of_that_name_that_holds_no_negatives_is_refused(tmp_path, monkeypatch, made):
    folder = copied(made, tmp_path / "shards")
    (folder / "00000.negatives.parquet").write_bytes(b"no parquet")
    assert "00000.negatives.parquet cannot be read" in run(monkeypatch, *words(folder))


def test_negatives_may_lie_in_a_folder(tmp_path, monkeypatch, made):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder, f"out={tmp_path}/out")) is None
    assert rows_of(tmp_path / "out") == rows_of(made)
    assert not rows_of(folder)


def test_the_seed_changes_negatives(tmp_path, monkeypatch, made):
    folder = copied(made, tmp_path / "shards")
    assert run(monkeypatch, *words(folder, "seed=1")) is None
    assert all(
        negative_rows(rows_of(folder)[name]) != negative_rows(negatives)
        for name, negatives in rows_of(made).items()
    )


def test_what_else_lies_in_shards_changes_no_negative(tmp_path, monkeypatch, made):
    """The same captions in other shards: the words of the corpus are the same, so are negatives."""
    folder = write(tmp_path / "shards", (45,))
    assert run(monkeypatch, *words(folder)) is None
    together = [row for negatives in rows_of(made).values() for row in negative_rows(negatives)]
    assert negative_rows(rows_of(folder)["00000.negatives.parquet"]) == together


def test_the_report_shows_pictures_captions_and_rules(made):
    page = (made / "report" / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 40
    assert "replace_nouns" in page
    negatives = next(iter(rows_of(made).values()))
    report = json.loads((made / "report" / "report.json").read_text())
    kept = sum(found.get("kept", 0) for found in report["rules"].values())
    assert kept == sum(len(row) for negatives in rows_of(made).values() for row in negative_rows(negatives))
    assert negative_rows(negatives)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["language=de"], "language='de' is not one of"),
        (["workers=0"], "workers=0 must be at least 1"),
        (["name=index"], "name='index' is not a name as in <stem>.<name>.parquet"),
        (["name=a.b"], "name='a.b' is not a name"),
        (["name=a/b"], "a folder goes into out"),
        (["maker.rules=[shuffle,paint]"], "maker.rules="),
        (["maker.lexicon_samples=0"], "maker.lexicon_samples=0"),
        (["per_caption=0"], "per_caption=0"),
        (["maker=paint"], "maker"),
        (["captions=null"], "captions=None leaves out the field"),
        (["captions=[]"], "captions=[] leaves out the field"),
        (["captions=''"], "captions='' leaves out the field"),
        (["captions=json.fr"], "00000.tar has json.fr (captions) beside an image"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, made, arguments, message):
    folder = copied(made, tmp_path / "shards")
    said = run(monkeypatch, *words(folder, *arguments))
    assert message in said
    assert "\n" not in said.strip()
    assert not list(folder.glob("*.negatives.parquet"))
    if arguments[0].startswith("captions="):
        assert not (folder / "report").exists()


def test_a_missing_tagger_is_named(tmp_path, monkeypatch, made):
    from vlm.curation.negatives import english
    from vlm.curation.negatives.rule_maker import grammar

    folder = copied(made, tmp_path / "shards")
    monkeypatch.setitem(sys.modules, "HanTa.HanoverTagger", None)
    english._load_tagger.cache_clear()
    grammar.cache_clear()
    try:
        assert "pip install -e '.[negatives]'" in run(monkeypatch, *words(folder))
    finally:
        grammar.cache_clear()


def test_a_sample_with_one_field_alone_is_no_error(tmp_path, monkeypatch):
    write_tar(tmp_path / "00000.tar", {f"{n:06d}": sample(n) for n in range(8)})
    assert run(monkeypatch, *words(tmp_path, "captions=[txt,json.caption_zh,json.none]")) is None
    assert len(rows_of(tmp_path)["00000.negatives.parquet"]) == 8


def test_folders_of_shards_called_alike_need_two_folders_of_negatives(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        write(tmp_path / folder, (4,))
    pattern = f"data={tmp_path}/{{a,b}}/*.tar"
    assert run(monkeypatch, *words(tmp_path / "a", pattern)) is None
    assert len(list(tmp_path.glob("*/*.negatives.parquet"))) == 2
    assert "would share" in run(monkeypatch, *words(tmp_path / "a", pattern, f"out={tmp_path}/out"))


def test_the_folder_of_shards_may_be_closed(tmp_path, monkeypatch, made):
    if os.geteuid() == 0:
        blocked = tmp_path / "file"
        blocked.write_text("")
        out = blocked / "folder"
    else:
        out = Path("/proc/none")
    folder = copied(made, tmp_path / "shards")
    assert "cannot be written" in run(monkeypatch, *words(folder, f"out={out}"))
