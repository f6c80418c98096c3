"""A sweep computes each cell once, keeps what it has, and goes on where one cannot be computed."""

import json
import logging
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from clip_layout import write_layout
from filelock import FileLock
from gloo import run_gloo
from PIL import Image
from tiny import COLOURS, save_tiny, tiny_loaded, write_tiny_shards

from vlm.distributed import Topology
from vlm.errors import CheckpointError, ConfigError, OutputError
from vlm.evaluation import (
    CaseData,
    ClassificationData,
    ClipBenchmarkData,
    Compositional,
    DataSet,
    ImageFolder,
    ImageTable,
    Retrieval,
    RetrievalData,
    ZeroShot,
)
from vlm.evaluation.cases import CasesFromShards
from vlm.evaluation.class_names import ClassesFromJsonLists
from vlm.evaluation.sweep import (
    CachedEmbedder,
    Candidates,
    Definition,
    OpenClip,
    Settings,
    Summary,
    find_candidates,
    sweep,
)
from vlm.evaluation.sweep import cache as cache_module
from vlm.evaluation.sweep.cell import main_metric
from vlm.evaluation.sweep.identity import Digests
from vlm.inference import Embedder

NAMES = {"en": ["red", "green", "blue", "grey"], "zh": ["红", "绿", "蓝", "灰"]}


def definitions(folder: Path) -> dict[str, Definition]:
    """Squares of four colours, to be named, found, and told from others."""
    shards, names = str(folder / "squares" / "*.tar"), folder / "names.json"
    if not names.exists():
        write_tiny_shards(folder / "squares", num_samples=13)
        names.write_text(json.dumps(NAMES, ensure_ascii=False))
    test = str(folder / "squares" / "00002.tar")
    sets: dict[str, DataSet] = {
        "colours": ClassificationData(
            test=test,
            label="cls",
            names={code: ClassesFromJsonLists(str(names), code) for code in NAMES},
            templates={"en": {"plain": ["{c}"], "square": ["a {c} square"]}, "zh": {"plain": ["{c}"]}},
        ),
        "squares": RetrievalData(
            pictures=shards, captions={"en": "json.caption_en"}, relevance="json.colour", captioning=True
        ),
        "choice": CaseData(
            cases={
                "en": CasesFromShards(
                    shards, fields={"true_captions": "json.caption_en", "each_false_caption": "json.false"}
                )
            }
        ),
    }
    nodes = {"colours": [test, str(names)], "squares": [shards], "choice": [shards]}
    return {name: Definition(nodes[name], dataset) for name, dataset in sets.items()}


def settings(folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "tasks": None,
        "languages": None,
        "cache": folder / "cache",
        "device": "cpu",
        "batch_size": 4,
        "num_workers": 0,
        "bf16": False,
    }
    return Settings(**(values | changes))


def two_steps(folder: Path) -> None:
    for step in (1, 2):
        place = folder / "runs" / "tiny" / "checkpoints" / f"step_{step:08d}"
        if place.exists():
            continue
        loaded = tiny_loaded()
        with torch.no_grad():
            for weight in loaded.model.parameters():
                weight.add_(0.01 * step)
        place.parent.mkdir(parents=True, exist_ok=True)
        save_tiny(place, step=step, loaded=loaded)


def find(folder: Path, *patterns: str) -> Callable[[], Candidates]:
    asked = [str(folder / pattern) for pattern in patterns or ("runs/tiny/checkpoints/*",)]
    no_open_clip = OpenClip(model_configs=None, tokenizer_path=None)
    return lambda: find_candidates(
        asked, weights="model", open_clip=no_open_clip, imported=folder / "imported"
    )


def run(folder: Path, *, out: str = "out", **changes: Any) -> Summary:
    two_steps(folder)
    return sweep(
        find(folder), definitions(folder), folder / out, settings(folder, **changes), Topology.current()
    )


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder / "cells").as_posix(): json.loads(path.read_text("utf-8"))
        for path in sorted((folder / "cells").rglob("*.json"))
    }


def test_each_question_is_a_cell_of_each_checkpoint(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert len(summary.done) == 2 * 5
    assert not summary.failed
    found = cells(tmp_path / "out")
    first = [name.partition("/step_00000001/")[2] for name in found if "step_00000001" in name]
    assert first == [
        "choice.image_caption_selection.en.json",
        "colours.zeroshot_classification.en.plain.json",
        "colours.zeroshot_classification.en.square.json",
        "colours.zeroshot_classification.zh.plain.json",
        "squares.zeroshot_retrieval.en.json",
    ]
    cell = found["tiny/step_00000002/colours.zeroshot_classification.en.square.json"]
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= cell.keys()
    assert (cell["model"], cell["pretrained"], cell["checkpoint"]["step"]) == ("tiny", "step_00000002", 2)
    assert cell["main_metric"] == "acc1"
    low, high = cell["confidence"]["acc1"]
    assert low <= cell["metrics"]["acc1"] <= high
    assert cell["counts"] == {"samples": 3, "names": 4, "labels": 4, "templates": 1}


def test_outcomes_lie_beside_the_cell(tmp_path: Path) -> None:
    run(tmp_path, tasks=["zeroshot_retrieval", "zeroshot_classification"])
    place = tmp_path / "out" / "cells" / "tiny" / "step_00000001"
    table = pq.read_table(place / "colours.zeroshot_classification.zh.plain.outcomes.parquet")
    metrics = cells(tmp_path / "out")["tiny/step_00000001/colours.zeroshot_classification.zh.plain.json"]
    values = table["acc1"].to_pylist()
    assert sum(values) / len(values) == pytest.approx(metrics["metrics"]["acc1"])
    assert set(table["category"].to_pylist()) <= set(NAMES["zh"])
    assert json.loads(table.schema.metadata[b"vlm"]) == {"balanced": ["mean_per_class_recall"]}
    both = pq.read_table(place / "squares.zeroshot_retrieval.en.outcomes.parquet").to_pylist()
    assert [row["query"] for row in both] == ["caption"] * 13 + ["picture"] * 13
    assert all((row["text_retrieval_recall@1"] is None) == (row["query"] == "caption") for row in both)


def test_the_table_has_a_row_for_each_metric(tmp_path: Path) -> None:
    run(tmp_path)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    content = cells(tmp_path / "out")
    assert len(rows) == sum(len(cell["metrics"]) for cell in content.values())
    assert sum(row["main"] for row in rows) == len(content)
    assert len((tmp_path / "out" / "results.csv").read_text("utf-8").splitlines()) == len(rows) + 1


def test_finished_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}
    forbid_towers(monkeypatch)
    for evaluator in (ZeroShot, Retrieval, Compositional):  # it may read large shards
        monkeypatch.setattr(evaluator, "check", lambda self: pytest.fail("a data set was read"))
    again = run(tmp_path)
    assert (len(again.done), len(again.kept)) == (0, len(first.done))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kill -9` would: an exception that nothing catches, in the middle of a cell."""

    class Killed(BaseException):
        pass

    texts, calls = Embedder.texts, [0]

    def dying(self: Embedder, asked: Any, **how: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise Killed
        return texts(self, asked, **how)

    monkeypatch.setattr(Embedder, "texts", dying)
    with pytest.raises(Killed):
        run(tmp_path)
    finished = cells(tmp_path / "out")
    assert len(finished) == 3
    monkeypatch.setattr(Embedder, "texts", texts)
    rest = run(tmp_path)
    assert (len(rest.kept), len(rest.done)) == (3, 7)
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole)
    assert numbers(tmp_path / "out") == numbers(whole / "out")


def numbers(folder: Path) -> dict[str, Any]:
    return {name: cell["metrics"] for name, cell in cells(folder).items()}


def forbid_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a tower was asked")

    for method in ("_embed", "_rounds"):
        monkeypatch.setattr(Embedder, method, refuse)


def test_vectors_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sweep with the same cache asks no tower, and gets the same numbers."""
    run(tmp_path)
    forbid_towers(monkeypatch)
    other = run(tmp_path, out="other")
    assert len(other.done) == 10
    assert numbers(tmp_path / "other") == numbers(tmp_path / "out")
    assert all(all(cell["cached"].values()) for cell in cells(tmp_path / "other").values())
    assert not all(all(cell["cached"].values()) for cell in cells(tmp_path / "out").values())


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_entry_is_noticed_and_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    files = sorted((tmp_path / "cache" / "vectors").glob("*.safetensors"))
    for path in files:
        content = bytearray(path.read_bytes())
        content[-3] ^= 255
        path.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        run(tmp_path, out="other")
    assert sum("is damaged and made again" in record.message for record in caplog.records) == len(files)
    assert numbers(tmp_path / "other") == numbers(tmp_path / "out")
    caplog.clear()
    run(tmp_path, out="third")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_other_pictures_are_embedded_anew(tmp_path: Path) -> None:
    run(tmp_path)
    shard = tmp_path / "squares" / "00002.tar"
    shard.write_bytes((tmp_path / "squares" / "00001.tar").read_bytes())
    (tmp_path / "squares" / "sizes.json").unlink(missing_ok=True)
    for index in (tmp_path / "squares").glob("*.index.parquet"):
        index.unlink()
    two_steps(tmp_path)
    changed = {
        "colours": Definition([str(shard), str(tmp_path / "names.json")], definitions_of_colours(tmp_path))
    }
    again = sweep(find(tmp_path), changed, tmp_path / "out", settings(tmp_path), Topology.current())
    assert len(again.done) == 6
    cell = cells(tmp_path / "out")["tiny/step_00000001/colours.zeroshot_classification.en.plain.json"]
    assert cell["num_samples"] == 5
    assert cell["cached"] == {"images": True, "texts": True}  # another task of the same pictures came before


def definitions_of_colours(folder: Path) -> ClassificationData:
    names = folder / "names.json"
    return ClassificationData(
        test=str(folder / "squares" / "00002.tar"),
        label="cls",
        names={code: ClassesFromJsonLists(str(names), code) for code in NAMES},
        templates={"zh": {"plain": ["{c}"]}, "en": {"square": ["a {c} square"], "plain": ["{c}"]}},
    )


def folder_of_squares(folder: Path) -> Definition:
    """Image files, one folder a colour; two colours for training."""
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shade = tuple(max(0, value - 9 * number - (split == "test")) for value in colour)
                Image.new("RGB", (20, 20), shade).save(place / f"{number}.png")
    test, train = (ImageFolder(str(folder / split)) for split in ("test", "train"))
    (folder / "names.json").write_text(json.dumps({"en": sorted(COLOURS)}))
    data = ClassificationData(
        test=test,
        train=train,
        shots=[1, 3, 8],
        label="cls",
        names={"en": ClassesFromJsonLists(str(folder / "names.json"), "en")},
        templates={"en": {"plain": ["{c}"]}},
    )
    node = {"root": [str(folder / "test"), str(folder / "train")], "path": str(folder / "names.json")}
    return Definition(node, data)


def test_image_files_are_a_data_set_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_steps(tmp_path)
    sets = {"folder": folder_of_squares(tmp_path / "squares")}

    def swept(out: str) -> Summary:
        return sweep(find(tmp_path), sets, tmp_path / out, settings(tmp_path), Topology.current())

    found = swept("out")
    assert {str(cell).partition(" ")[2] for cell in found.done} == {
        "folder zeroshot_classification en plain",
        "folder knn",
        "folder linear_probe",
        "folder few_shot",
    }
    assert not found.failed
    cell = cells(tmp_path / "out")["tiny/step_00000001/folder.few_shot.json"]
    assert cell["main_metric"] == "few_shot_acc1@3"
    assert cell["notes"]["shots_left_out"] == "8"
    files = json.loads((tmp_path / "out" / cell["pictures"]["list"]).read_text())["files"]
    assert len(files) == 2 * len(COLOURS)
    assert all(Path(path).is_file() for path, _, _ in files)
    forbid_towers(monkeypatch)
    assert len(swept("other").done) == len(found.done)
    assert numbers(tmp_path / "other") == numbers(tmp_path / "out")


def test_a_cell_that_fails_leaves_the_others(tmp_path: Path) -> None:
    two_steps(tmp_path)
    sets = definitions(tmp_path)
    (tmp_path / "short.json").write_text(json.dumps({"en": ["red"]}))
    sets["short"] = Definition(
        [],
        ClassificationData(
            test=str(tmp_path / "squares" / "00002.tar"),
            label="cls",
            names={"en": ClassesFromJsonLists(str(tmp_path / "short.json"), "en")},
            templates={"en": {"plain": ["{c}"]}},
        ),
    )
    found = sweep(find(tmp_path), sets, tmp_path / "out", settings(tmp_path), Topology.current())
    assert (len(found.done), len(found.failed)) == (10, 2)
    (path, _) = sorted((tmp_path / "out" / "failed").rglob("*.json"))
    content = json.loads(path.read_text("utf-8"))
    assert content["cell"]["dataset"] == "short"
    assert "which is not in the class list" in content["error"]
    (tmp_path / "short.json").write_text(json.dumps({"en": NAMES["en"]}))
    mended = sweep(find(tmp_path), sets, tmp_path / "out", settings(tmp_path), Topology.current())
    assert (len(mended.done), len(mended.kept), len(mended.failed)) == (2, 10, 0)
    assert not list((tmp_path / "out" / "failed").rglob("*.json"))


def test_a_bug_in_one_evaluation_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, embedder: Any) -> Any:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(Retrieval, "__call__", broken)
    found = run(tmp_path)
    assert {cell.dataset for cell in found.failed} == {"squares"}
    assert set(found.failed.values()) == {"ZeroDivisionError: by chance"}
    assert len(found.done) == 8


def test_a_checkpoint_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    two_steps(tmp_path)
    weights = tmp_path / "runs/tiny/checkpoints/step_00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = run(tmp_path)
    assert len(found.done) == 5
    assert {cell.checkpoint for cell in found.failed} == {"tiny/step_00000001"}


def test_a_full_disk_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.raises(OutputError, match="the same command again, it goes on"):
        run(tmp_path)
    assert not list((tmp_path / "cache" / "vectors").glob("*"))


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    place = tmp_path / "out" / "claims" / "tiny" / "step_00000001" / "squares.lock"
    place.parent.mkdir(parents=True)
    with FileLock(place):
        found = run(tmp_path)
    assert (len(found.done), found.elsewhere) == (9, ["tiny/step_00000001 squares"])
    rest = run(tmp_path)
    assert (len(rest.done), len(rest.kept), rest.elsewhere) == (1, 9, [])


def test_tasks_of_an_array_begin_with_different_checkpoints(tmp_path: Path) -> None:
    for first, step in ((0, 1), (1, 2), (5, 2)):
        found = run(tmp_path, out=f"out_{first}", first=first)
        assert found.done[0].checkpoint == f"tiny/step_{step:08d}"


def test_an_old_number_goes_with_its_question(tmp_path: Path) -> None:
    """A cell that fails now is no longer in the table, and one that is back is no longer failed."""
    run(tmp_path)
    names = tmp_path / "names.json"
    before = names.read_text("utf-8")
    names.write_text(json.dumps({"en": ["red"], "zh": NAMES["zh"]}))
    assert len(run(tmp_path).failed) == 4
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["language"] for row in rows if row["dataset"] == "colours"} == {"zh"}
    assert not list((tmp_path / "out").rglob("cells/**/colours*en*"))
    names.write_text(before)
    assert len(run(tmp_path).done) == 6
    assert not list((tmp_path / "out" / "failed").rglob("*.json"))


def test_a_failure_of_before_is_forgotten(tmp_path: Path) -> None:
    (first, *_) = run(tmp_path).done
    failed = first.file(tmp_path / "out", "failed")
    failed.parent.mkdir(parents=True)
    failed.write_text("{}")
    run(tmp_path)
    assert not failed.exists()


def test_one_data_set_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    two_steps(tmp_path)
    sets = definitions(tmp_path)
    sets["half"] = Definition(
        {"root": str(tmp_path / "half")}, ClipBenchmarkData(root=str(tmp_path / "half"))
    )
    found = sweep(find(tmp_path), sets, tmp_path / "out", settings(tmp_path), Topology.current())
    assert len(found.done) == 10
    assert "nshards.txt is missing" in found.broken["half"]
    with pytest.raises(ConfigError, match=r"nshards\.txt is missing"):
        sweep(
            find(tmp_path), {"half": sets["half"]}, tmp_path / "out", settings(tmp_path), Topology.current()
        )


def test_a_folder_is_the_same_after_it_was_read(tmp_path: Path) -> None:
    """Reading shards leaves an index beside them, which is no part of the data set."""
    two_steps(tmp_path)
    folder = tmp_path / "layout"
    write_layout(folder, kind=None)
    assert not list((folder / "test").glob("*.index.parquet"))
    sets = {"layout": Definition({"root": str(folder)}, ClipBenchmarkData(root=str(folder)))}
    for done, kept in ((2, 0), (0, 2)):
        found = sweep(find(tmp_path), sets, tmp_path / "out", settings(tmp_path), Topology.current())
        assert (len(found.done), len(found.kept)) == (done, kept)
    assert list((folder / "test").glob("*.index.parquet"))
    (folder / "classnames.txt").write_text("\n".join([*COLOURS, "purple"]))
    found = sweep(find(tmp_path), sets, tmp_path / "out", settings(tmp_path), Topology.current())
    assert (len(found.done), len(found.kept)) == (2, 0)


def test_other_pictures_under_the_names_of_a_table_are_noticed(tmp_path: Path) -> None:
    two_steps(tmp_path)
    table = tmp_path / "table.csv"
    table.write_text("image,text\n0.png,a red square\n1.png,a blue square\n")
    data = RetrievalData(pictures=ImageTable(str(table), images=None), captions={"en": "json.text"})
    for colour, done in ((COLOURS["red"], 2), (COLOURS["red"], 0), (COLOURS["green"], 2)):
        if done:
            for number in range(2):
                Image.new("RGB", (20 + number, 20), colour).save(tmp_path / f"{number}.png")
        # What was read is remembered; another command reads anew.
        sets = {"table": Definition({"pictures": {"path": str(table)}}, replace(data))}
        found = sweep(find(tmp_path), sets, tmp_path / "out", settings(tmp_path), Topology.current())
        assert len(found.done) == done, colour


def test_a_word_that_is_called_like_a_folder_is_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digests = Digests(tmp_path / "digests")
    before = digests.of_data({"split": "test", "root": "test"}, object_of_no_fields())
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.txt").write_text("a")
    after = digests.of_data({"split": "test", "root": "test"}, object_of_no_fields())
    assert before[0] == {"split": "test", "root": "test"}
    assert after[0]["split"] == "test"
    assert [name for name, *_ in after[0]["root"]] == ["a.txt"]


def object_of_no_fields() -> CaseData:
    return CaseData(cases={})


def test_a_new_language_leaves_the_others_what_they_were(tmp_path: Path) -> None:
    two_steps(tmp_path)
    sets = definitions(tmp_path)
    dataset = sets["colours"].dataset
    node = {
        "names": {"en": ["red"]},
        "templates": {"en": {"plain": ["{c}"], "square": ["a {c} square"]}},
        "label": "cls",
    }

    def swept(**changes: Any) -> Summary:
        changed = {"colours": Definition(node | changes, dataset)}
        return sweep(find(tmp_path), changed, tmp_path / "out", settings(tmp_path), Topology.current())

    assert len(swept().done) == 6
    both = {"en": node["templates"]["en"], "zh": {"plain": ["{c}"]}}
    assert {cell.language for cell in swept(names=node["names"] | {"zh": ["红"]}, templates=both).done} == {
        "zh"
    }
    other = {"en": both["en"] | {"plain": ["{c}."]}}
    assert {cell.templates for cell in swept(templates=other).done if cell.language == "en"} == {"plain"}
    assert len(swept(templates=other, label="json.colour").done) == 6


def test_cells_of_another_checkpoint_are_not_written_over(tmp_path: Path) -> None:
    run(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "runs", other / "runs")
    sets = definitions(tmp_path)

    def swept() -> Summary:
        return sweep(find(other), sets, tmp_path / "out", settings(tmp_path), Topology.current())

    assert len(swept().kept) == 10  # the same weights, moved
    for place in (other / "runs" / "tiny" / "checkpoints").iterdir():
        shutil.rmtree(place)
        loaded = tiny_loaded()
        with torch.no_grad():
            loaded.model.logit_scale.add_(0.5)
        save_tiny(place, step=int(place.name[-1]), loaded=loaded)
    with pytest.raises(ConfigError, match=r"would be called tiny/step_00000001, as .*name another out"):
        swept()


def test_a_cell_without_its_outcomes_is_made_anew(tmp_path: Path) -> None:
    run(tmp_path)
    next((tmp_path / "out").rglob("*.outcomes.parquet")).unlink()
    assert len(run(tmp_path).done) == 1


def test_the_table_is_there_whatever_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    embed, asked = Embedder._embed_images, set()

    def ending(self: CachedEmbedder, shards: Any) -> Any:
        asked.add(self.made_by)
        if len(asked) == 2:
            raise Ended
        return embed(self, shards)

    monkeypatch.setattr(Embedder, "_embed_images", ending)
    with pytest.raises(Ended):
        run(tmp_path)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["step"] for row in rows} == {1}


def test_a_checkpoint_that_is_deleted_meanwhile_leaves_the_others(tmp_path: Path) -> None:
    two_steps(tmp_path)
    found = find(tmp_path)()
    shutil.rmtree(found.found[0].path)
    swept = sweep(
        lambda: found, definitions(tmp_path), tmp_path / "out", settings(tmp_path), Topology.current()
    )
    assert len(swept.done) == 5
    assert {cell.checkpoint for cell in swept.failed} == {"tiny/step_00000001"}


def test_a_model_is_not_asked_what_it_has_no_part_for(tmp_path: Path) -> None:
    assert not [cell for cell in run(tmp_path).done if cell.task == "captioning"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["zero_shot"]}, "tasks: there is no 'zero_shot'; there are zeroshot_classification"),
        ({"languages": ["de", "en"]}, "languages: none of the data sets has 'de'; there is en, zh"),
        ({"tasks": ["knn"]}, r"nothing is asked: tasks=\['knn'\].*zeroshot_classification \(zh\)"),
    ],
)
def test_asking_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **changes)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nothing/*", "matches nothing"), ("squares", "holds no checkpoint"), ("M:w.pt", "there is no file")],
)
def test_a_pattern_without_checkpoints_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    definitions(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find(tmp_path, pattern)()


def test_two_checkpoints_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("a/tiny", "b/tiny"):
        (tmp_path / place).parent.mkdir(parents=True)
        save_tiny(tmp_path / place)
    with pytest.raises(ConfigError, match="2 are called 'tiny'"):
        find(tmp_path, "?/tiny")()


def test_a_run_is_its_last_checkpoint(tmp_path: Path) -> None:
    two_steps(tmp_path)
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    assert [candidate.name for candidate in find(tmp_path, "runs/*")().found] == ["tiny/step_00000002"]
    both = find(tmp_path, "runs/*", "runs/tiny/checkpoints/*")().found
    assert [candidate.step for candidate in both] == [2, 1]


def test_an_unreadable_checkpoint_of_a_pattern_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two_steps(tmp_path)
    (tmp_path / "runs/tiny/checkpoints/step_00000001/model.json").write_text("{}")
    assert [candidate.step for candidate in find(tmp_path, "runs/tiny/checkpoints/*")().found] == [2]
    assert "step_00000001 is left out: " in caplog.text
    with pytest.raises(CheckpointError, match=r"model\.json"):
        find(tmp_path, "runs/tiny/checkpoints/step_00000001")()


def on_ranks(folder: str) -> dict[str, Any]:
    base = Path(folder)
    sweep(find(base), definitions(base), base / "out", settings(base), Topology.current())
    return numbers(base / "out")


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_ranks_get_what_one_process_gets(tmp_path: Path, world_size: int) -> None:
    """13 pictures in batches of 4: the last rank has less to do than the first."""
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    alone.mkdir()
    run(alone)
    two_steps(ranks)
    definitions(ranks)
    found = run_gloo(on_ranks, world_size, tmp_path, str(ranks))
    assert found == [numbers(alone / "out")] * world_size


def with_damage(folder: str) -> tuple[int, list[str]]:
    """Cells that are done on this rank, and errors of the others."""
    found = run(Path(folder))
    return len(found.done), sorted(set(found.failed.values()))


def test_a_picture_that_one_rank_cannot_read_fails_on_all(tmp_path: Path) -> None:
    """The other rank would wait for it, or take its next message for the one it waits for."""
    folder = tmp_path / "ranks"
    folder.mkdir()
    two_steps(folder)
    definitions(folder)
    shard = folder / "squares" / "00001.tar"
    with tarfile.open(shard) as tar:
        (picture,) = [member for member in tar if member.name.startswith("000006.png")]
    with shard.open("r+b") as file:
        file.seek(picture.offset_data)
        file.write(bytes(picture.size))
    found = run_gloo(with_damage, 2, tmp_path, str(folder))
    # Colours are of another shard.
    assert [done for done, _ in found] == [6, 6]
    for _, errors in found:
        assert all("1 of 13 pictures of" in error and "000006" in error for error in errors), errors
    assert len(list((folder / "out" / "failed").rglob("*.json"))) == 4


def test_two_sweeps_at_once_lose_nothing(tmp_path: Path) -> None:
    two_steps(tmp_path)
    sets = definitions(tmp_path)
    errors: list[BaseException] = []

    def work(out: str) -> None:
        try:
            sweep(find(tmp_path), sets, tmp_path / out, settings(tmp_path), Topology.current())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(out,)) for out in ("one", "one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(numbers(tmp_path / "one")) == 10
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("task", "metrics", "main"),
    [
        ("few_shot", ["few_shot_acc1@1", "few_shot_acc1@8"], "few_shot_acc1@8"),
        ("pair_scoring", ["clip_score"], "clip_score"),
        ("pair_scoring", ["clip_score", "kendall_tau_b", "kendall_tau_c"], "kendall_tau_c"),
        ("image_caption_selection", ["text_score", "group_score"], "group_score"),
        ("of_another", ["first", "second"], "first"),
    ],
)
def test_one_metric_stands_for_a_task(task: str, metrics: list[str], main: str) -> None:
    assert main_metric(task, dict.fromkeys(metrics, 0.5)) == main
