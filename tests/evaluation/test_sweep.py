"""A sweep computes each cell once, keeps what it has, and goes on where one cannot be computed."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from gloo import run_gloo
from PIL import Image
from tiny import COLOURS, save_tiny, tiny_loaded, write_tiny_shards

from vlm.distributed import Topology
from vlm.errors import CheckpointError, ConfigError, OutputError
from vlm.evaluation import (
    CaseData,
    ClassificationData,
    Compositional,
    DataSet,
    ImageFolder,
    Retrieval,
    RetrievalData,
    ZeroShot,
)
from vlm.evaluation.cases import CasesFromShards
from vlm.evaluation.class_names import ClassesFromJsonLists
from vlm.evaluation.sweep import (
    Candidate,
    Definition,
    OpenClip,
    Settings,
    Summary,
    find_candidates,
    sweep,
)
from vlm.evaluation.sweep import cache as cache_module
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


def find(folder: Path, *patterns: str) -> Callable[[], list[Candidate]]:
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
    return Definition([str(folder / "test"), str(folder / "train"), str(folder / "names.json")], data)


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
    files = cell["pictures"]["files"]
    assert len(files) == 2 * len(COLOURS)
    assert all(Path(path).is_file() for path, _, _ in files.values())
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


def test_parts_share_the_work(tmp_path: Path) -> None:
    parts = [run(tmp_path, part=(index, 4)) for index in range(4)]
    done = [str(cell) for part in parts for cell in part.done]
    assert len(done) == len(set(done)) == 10
    assert all(part.done for part in parts)
    assert len(run(tmp_path).kept) == 10


def test_a_model_is_not_asked_what_it_has_no_part_for(tmp_path: Path) -> None:
    assert not [cell for cell in run(tmp_path).done if cell.task == "captioning"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["zero_shot"]}, "tasks: there is no 'zero_shot'; there are zeroshot_classification"),
        ({"languages": ["de"]}, r"languages=\['de'\].*zeroshot_classification \(zh\)"),
    ],
)
def test_asking_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **changes)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nothing/*", "matches nothing"), ("squares", "holds no checkpoint"), ("M:w.pt", "names no file")],
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
    assert [candidate.name for candidate in find(tmp_path, "runs/*")()] == ["tiny/step_00000002"]
    both = find(tmp_path, "runs/*", "runs/tiny/checkpoints/*")()
    assert [candidate.step for candidate in both] == [2, 1]


def test_an_unreadable_checkpoint_of_a_pattern_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two_steps(tmp_path)
    (tmp_path / "runs/tiny/checkpoints/step_00000001/model.json").write_text("{}")
    assert [candidate.step for candidate in find(tmp_path, "runs/tiny/checkpoints/*")()] == [2]
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
