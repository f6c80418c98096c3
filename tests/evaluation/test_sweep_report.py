"""A page about a sweep: what it says of cells whose answers are known."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_shards import write_shards
from sweeps import (
    CHOICE,
    RETRIEVAL,
    Asked,
    Model,
    answers,
    seed_of,
    steps,
    write_cell,
    write_failure,
    write_sweep,
)

from vlm.charts import number
from vlm.errors import ConfigError, DataError
from vlm.evaluation.bootstrap import paired
from vlm.evaluation.sweep_report import write_sweep_report
from vlm.evaluation.sweep_report.cells import Question, read_sweep
from vlm.evaluation.sweep_report.compare import choose, compare
from vlm.evaluation.sweep_report.rows import RowReader
from vlm.evaluation.sweep_report.table import Table, make_table

VOID = {"meta", "img", "br", "wbr", "link", "line", "polyline", "polygon"}
ANIMALS = Asked(dataset="animals", categories=["cat", "dog", "<ox>"], count=240)
TIERE = Asked(dataset="animals", language="zh", categories=["猫", "狗", "牛"], count=240)
FINE = Asked(
    dataset="fine", categories=[f"kind {n}" for n in range(30)], count=300, main="mean_per_class_recall"
)
SEARCH = Asked(dataset="search", task=RETRIEVAL, count=90)
SWAPS = Asked(dataset="swaps", task=CHOICE, categories=["swap", "replace"], count=150)
QUESTIONS = [ANIMALS, TIERE, FINE, SEARCH, SWAPS]
MODELS = [*steps("toy", [0.4, 0.62]), *steps("other", [0.45, 0.6]), Model(name="clip-vit", skill=0.61)]


def question(asked: Asked) -> Question:
    return Question(asked.task, asked.dataset, asked.language, asked.templates)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "a <sweep>", MODELS, QUESTIONS)


def report(folder: Path, **changes: Any) -> tuple[str, str]:
    """The page and the table in Markdown."""
    asked: dict[str, Any] = {
        "baseline": None,
        "against": None,
        "averages": {},
        "shifts": {},
        "num_pictures": 4,
    }
    page, table = write_sweep_report(folder, folder / "out", **(asked | changes))
    return page.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")


def table_of(folder: Path, **changes: Any) -> Table:
    return make_table(read_sweep(folder), RowReader(), **({"averages": {}, "shifts": {}} | changes))


def column(table: Table, title: str, *about: str) -> dict[str, Any]:
    """The entries of a column, by checkpoint."""
    place = next(n for n, h in enumerate(table.heads) if h.title == title and set(about) <= set(h.about))
    return {point.name: entries[place] for point, entries in table.rows}


class Page(HTMLParser):
    """What is open, what would be loaded, and the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        assert tag != "img" or values["alt"], "a picture without words for it"
        assert tag not in {"link", "iframe", "object"}
        self.loaded += [str(values[name]) for name in ("src", "href", "srcset") if name in values]
        self.ids += [str(values["id"])] if "id" in values else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "script"} & set(self.open):
            self.words.append(" ".join(data.split()))


def test_page_is_well_formed_and_loads_nothing(folder: Path) -> None:
    text, _ = report(folder)
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith("data:image/webp;base64,") for source in page.loaded)
    assert not re.search(r"https?:|url\(|@import|fetch\(", text)
    words = " ".join(page.words)
    assert "a <sweep>" in page.words
    assert {"猫", "<ox>"} <= set(page.words)
    assert "toy/step_000800" in words.replace("/ ", "/")


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: f"{asked.dataset} {asked.language}")
def test_best_and_what_may_be_as_good_are_marked(folder: Path, asked: Asked) -> None:
    right = {model.name: answers(model, asked)[2].astype(float) for model in MODELS}
    groups = answers(MODELS[0], asked)[0].tolist() if asked in (FINE, SWAPS) else None
    groups = np.asarray(groups) if groups is not None else None
    rows = {name: values[::-1] if asked is SEARCH else values for name, values in right.items()}
    found = column(table_of(folder), asked.dataset, str(asked.language))
    best = max(found, key=lambda name: found[name].value)
    for name, entry in found.items():
        difference = paired(rows[best], rows[name], groups)
        assert entry.best == (name == best)
        assert entry.value == pytest.approx(found[best].value - difference.mean)
        if abs(min(difference.low, difference.high, key=abs)) > 0.01:  # not on the edge
            assert entry.tied == (name != best and difference.low <= 0), name
    assert 0 < sum(entry.tied for entry in found.values()) < 4 or asked is not ANIMALS


def test_averages_are_over_what_all_have_and_shifts_are_differences(folder: Path) -> None:
    gone = folder / "cells" / "clip-vit" / f"{SWAPS.file}.json"
    gone.unlink()
    table = table_of(folder, averages={"pets": ["animals", "fine", "none"]}, shifts={"fine": "animals"})
    cells = read_sweep(folder).cells
    shared = [question(asked) for asked in QUESTIONS if asked is not SWAPS]
    for name, entry in column(table, "all", "4 columns").items():
        assert entry.value == pytest.approx(fmean(cells[name, asked].value or 0.0 for asked in shared))
    chinese = [head for head in table.heads if head.title == "zh"]
    assert not chinese  # one column alone
    for name, entry in column(table, "pets", "2 of 3 data sets").items():
        animals = fmean(cells[name, question(asked)].value or 0.0 for asked in (ANIMALS, TIERE))
        assert entry.value == pytest.approx((animals + (cells[name, question(FINE)].value or 0.0)) / 2)
    shift = next(h for h in table.heads if h.group == "Change under shift")
    assert (shift.title, shift.about) == ("fine", ["less animals", "en"])
    for name, entry in column(table, "fine", "less animals").items():
        base = cells[name, question(ANIMALS)].metrics["mean_per_class_recall"]
        assert entry.value == pytest.approx((cells[name, question(FINE)].value or 0.0) - base)


def test_failed_and_missing_cells_do_not_hide_the_others(folder: Path) -> None:
    model = MODELS[2]
    for suffix in (".json", ".outcomes.parquet"):
        (folder / "cells" / model.name / f"{TIERE.file}{suffix}").unlink()
        (folder / "cells" / "clip-vit" / f"{SEARCH.file}{suffix}").unlink()
    write_failure(folder, model, TIERE, "DataError: a | b\nis <broken>: 坏了")
    write_failure(folder, model, ANIMALS, "DataError: of an earlier try")  # it is finished since
    write_failure(folder, Model(name="wreck", skill=0), ANIMALS, "CheckpointError: no weights")
    entry = column(table_of(folder), "animals", "zh")
    assert entry[model.name].failed == "DataError: a | b\nis <broken>: 坏了"
    assert entry[model.name].value is None
    assert column(table_of(folder), "search")["clip-vit"].failed is None
    assert column(table_of(folder), "all")["wreck"].value is None
    page, markdown = report(folder)
    assert "23 done, 2 failed, 5 missing" in Page(page).words
    assert "of an earlier try" not in page
    assert "a \\| b is &lt;broken>: 坏了 |" in markdown
    assert "| wreck | animals, Zero-shot classification, en | CheckpointError: no weights |" in markdown


def test_classes_and_confusions_equal_a_slow_count(folder: Path) -> None:
    old, new = MODELS[0], MODELS[1]
    found = compare(read_sweep(folder), RowReader(), baseline=old.name, against=new.name, num_pictures=4)
    details = {detail.question: detail for detail in found.details}
    changes = {change.question: change for change in found.changes}
    assert list(changes) == list(details) == read_sweep(folder).questions
    for asked in (ANIMALS, FINE, SWAPS):
        detail, change = details[question(asked)], changes[question(asked)]
        true, _, right = answers(old, asked)
        better = answers(new, asked)[2].astype(float) - right
        for one in [*detail.gains, *detail.losses]:
            mine = true == list(asked.categories).index(one.name)
            assert one.count == mine.sum()
            assert one.after - one.before == pytest.approx(better[mine].mean())
            weight = 1 / len(set(true)) if asked is not ANIMALS else mine.mean()
            assert one.share == pytest.approx(weight * better[mine].mean())
        if len(detail.gains) < 15:
            total = sum(one.share for one in [*detail.gains, *detail.losses])
            assert change.difference is not None
            assert total == pytest.approx(change.difference.mean)
            assert total == pytest.approx(change.after - change.before)


def test_few_classes_have_a_matrix_and_many_have_pairs(folder: Path) -> None:
    old, new = MODELS[0], MODELS[1]
    found = compare(read_sweep(folder), RowReader(), baseline=old.name, against=new.name, num_pictures=0)
    details = {detail.question: detail for detail in found.details}
    matrix = details[question(ANIMALS)].matrix
    assert matrix is not None
    for model, counts in ((old, matrix.before), (new, matrix.after)):
        true, guess, _ = answers(model, ANIMALS)
        slow = Counter(
            (ANIMALS.categories[t], ANIMALS.categories[g]) for t, g in zip(true, guess, strict=True)
        )
        for row, name in enumerate(matrix.names):
            for place, answer in enumerate(matrix.names):
                assert counts[row, place] == slow[name, answer]
    fine = details[question(FINE)]
    assert fine.matrix is None
    slow_pairs = [Counter(zip(*answers(model, FINE)[:2], strict=True)) for model in (old, new)]
    most = max(count for counts in slow_pairs for (true, guess), count in counts.items() if true != guess)
    assert len(fine.pairs) == 15
    assert max(fine.pairs[0].before, fine.pairs[0].after) == most
    for pair in fine.pairs:
        place = FINE.categories.index(pair.true), FINE.categories.index(pair.answer)
        assert (pair.before, pair.after) == (slow_pairs[0][place], slow_pairs[1][place])
    for asked in (SEARCH, SWAPS):  # what is found are captions, not classes
        assert details[question(asked)].matrix is None
        assert details[question(asked)].pairs == []


def test_pictures_are_those_that_one_alone_got_right(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [30, 30])
    asked = Asked(dataset="animals", pictures={"shards": [shards]}, count=60)
    old, new = steps("toy", [0.4, 0.7])
    folder = write_sweep(tmp_path / "sweep", [old, new], [asked])
    found = compare(read_sweep(folder), RowReader(), baseline=old.name, against=new.name, num_pictures=5)
    (detail,) = found.details
    was, now = answers(old, asked)[2], answers(new, asked)[2]
    assert detail.num_won == (now & ~was).sum()
    assert detail.num_lost == (was & ~now).sum()
    assert len(detail.won) == 5
    true, guess, _ = answers(old, asked)
    for case in detail.won:
        assert now[case.picture]
        assert not was[case.picture]
        assert case.true == case.after == asked.categories[true[case.picture]]
        assert case.before == asked.categories[guess[case.picture]]
    page, _ = report(folder, num_pictures=5)
    sources = [source.partition(",")[2] for source in Page(page).loaded]
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))))[4, 4] for one in sources]
    assert [int(pixel[0]) for pixel in pixels] == pytest.approx(
        [case.picture for case in detail.cases], abs=3
    )


def test_pictures_of_files_are_shown_whole_or_in_part(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20), (200, 0, 0))
    image.paste((0, 0, 200), (10, 0, 20, 20))
    image.save(tmp_path / "one.png")
    path = str(tmp_path / "one.png")
    files = [[path, part, None] for part in [None, [10, 0, 10, 20]] * 30]
    folder = write_sweep(
        tmp_path / "sweep",
        steps("toy", [0.3, 0.8]),
        [Asked(dataset="animals", pictures={"list": "pictures/animals.json"})],
    )
    (folder / "pictures").mkdir()
    (folder / "pictures" / "animals.json").write_text(json.dumps({"files": files}))
    page, _ = report(folder, num_pictures=60)
    found = {Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))).size for s in Page(page).loaded}
    assert found == {(20, 20), (10, 20)}


@pytest.mark.parametrize(
    "pictures",
    [
        {"shards": ["/nowhere/{00..01}.tar"]},
        {"list": "pictures/nowhere.json"},
        {},
    ],
)
def test_a_page_says_why_it_has_no_pictures(
    tmp_path: Path, pictures: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_sweep(tmp_path, steps("toy", [0.3, 0.8]), [Asked(dataset="animals", pictures=pictures)])
    page, _ = report(folder)
    assert any(word.startswith("The pictures cannot be shown: ") for word in Page(page).words)
    assert "the report lacks pictures" in caplog.text
    assert not Page(page).loaded
    assert "By class" in page


def test_what_is_compared_by_itself(tmp_path: Path) -> None:
    one_run = write_sweep(tmp_path / "one", steps("toy", [0.9, 0.5, 0.4]), [ANIMALS])
    sweep = read_sweep(one_run)
    assert choose(sweep, baseline=None, against=None) == ("toy/step_000800", "toy/step_001200")
    assert choose(sweep, baseline=None, against="toy/step_000400") == ("toy/step_001200", "toy/step_000400")
    several = read_sweep(write_sweep(tmp_path / "several", MODELS, QUESTIONS))
    average = {
        model.name: fmean(several.cells[model.name, question(asked)].value or 0.0 for asked in QUESTIONS)
        for model in MODELS
    }
    best, second, *_ = sorted(average, key=lambda name: -average[name])
    assert choose(several, baseline=None, against=None) == (second, best)
    assert choose(several, baseline=best, against=None) == (best, second)
    alone = write_sweep(tmp_path / "alone", MODELS[:1], [ANIMALS])
    assert choose(read_sweep(alone), baseline=None, against=None) is None
    page, _ = report(alone)
    assert 'id="comparison"' not in page
    assert 'id="curves"' not in page


def test_a_curve_for_each_run_of_several_steps(folder: Path) -> None:
    page, _ = report(folder)
    drawn = re.findall(r'<svg viewBox[^>]*aria-label="([^"]*)"', page)
    assert len(drawn) == len(QUESTIONS)
    assert all("toy: " in label and "other: " in label and "clip-vit" not in label for label in drawn)
    cell = read_sweep(folder).cells["toy/step_000800", question(ANIMALS)]
    assert f"{number(100 * (cell.value or 0))} at step 800" in drawn[0]
    assert page.count('<polygon class="band line-0"') == len(QUESTIONS)


def test_a_damaged_parquet_leaves_the_numbers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "cells" / "toy" / "step_000800" / f"{ANIMALS.file}.outcomes.parquet"
    path.write_bytes(path.read_bytes()[:300])
    page, _ = report(folder, baseline="toy/step_000400", against="toy/step_000800")
    assert caplog.text.count("step_000800/animals.zeroshot_classification.en.outcomes.parquet cannot be") == 1
    words = " ".join(Page(page).words)
    assert "cells/toy/step_000800/animals.zeroshot_classification.en.outcomes.parquet cannot be read" in words
    entry = column(table_of(folder), "animals", "en")["toy/step_000800"]
    assert entry.value is not None
    assert entry.confidence is not None
    assert not entry.tied
    assert "of 1 there are no queries to compare" in words


def test_cells_of_other_data_are_not_compared(folder: Path) -> None:
    write_cell(folder, MODELS[1], ANIMALS, data_sha256="ff" * 32)
    entries = column(table_of(folder), "animals", "en")
    assert not entries[MODELS[1].name].tied
    page, _ = report(folder, baseline=MODELS[0].name, against=MODELS[1].name)
    words = " ".join(Page(page).words)
    assert "the data changed between the cells of this column" in words
    assert "1 were measured on other data and are left out" in words


def test_rows_of_other_pictures_are_not_compared(folder: Path) -> None:
    path = folder / "cells" / "toy" / "step_000800" / f"{ANIMALS.file}.outcomes.parquet"
    rows = pq.read_table(path)
    pq.write_table(
        rows.take(list(range(len(rows)))[::-1]).replace_schema_metadata(rows.schema.metadata), path
    )
    found = compare(
        read_sweep(folder), RowReader(), baseline="toy/step_000400", against="toy/step_000800", num_pictures=4
    )
    assert {change.question for change in found.changes if change.verdict == "unknown"} == {question(ANIMALS)}


def test_cells_without_outcomes_have_their_place(folder: Path) -> None:
    """Of captions, whose main metric is no mean over queries, and no share."""
    written = Asked(dataset="photos", task="captioning", count=10, main="CIDEr")
    for place, model in enumerate(MODELS):
        value = 1.25 + place / 8
        path = folder / "cells" / model.name / f"{written.file}.json"
        content = json.loads((folder / "cells" / model.name / f"{ANIMALS.file}.json").read_text())
        content |= {"dataset": "photos", "task": "captioning", "main_metric": "CIDEr", "confidence": {}}
        path.write_text(json.dumps(content | {"metrics": {"CIDEr": value, "METEOR": None}}))
    table = table_of(folder)
    assert [entry.best for entry in column(table, "photos").values()].count(True) == 1
    assert not any(entry.tied for entry in column(table, "photos").values())
    assert "5 columns" in column_about(table, "all")
    page, markdown = report(folder)
    assert "1.25" in Page(page).words
    assert re.search(r"\| .*photos.*CIDEr \|.*\*\*1\.75\*\*", markdown)


def column_about(table: Table, title: str) -> list[str]:
    return next(head.about for head in table.heads if head.title == title)


def test_markdown_is_a_table_with_marks(folder: Path) -> None:
    _, markdown = report(folder)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in lines[:7]}
    assert widths == {len(QUESTIONS) + 2}  # checkpoints down, as there are no fewer of them
    assert lines[0].startswith("| checkpoint | Zero-shot classification, animals, en, top-1 |")
    assert markdown.count("**") // 2 >= len(QUESTIONS)
    assert "†: not significantly worse" in markdown
    assert "## Failed" not in markdown
    wide = write_sweep(folder.parent / "wide", MODELS[:2], QUESTIONS)
    _, turned = report(wide)
    assert next(line for line in turned.splitlines() if line.startswith("|")).count("|") == 4
    assert "| **" in turned


def damaged(folder: Path, how: str) -> None:
    path = folder / "cells" / "clip-vit" / f"{ANIMALS.file}.json"
    content = json.loads(path.read_text())
    if how == "format":
        content["format"] = 2
    elif how == "metrics":
        del content["metrics"]
    elif how == "checkpoint":
        content["checkpoint"] = 7
    path.write_text(json.dumps(content) if how != "cut" else path.read_text()[:90])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("format", r"animals\S+\.json is of format 2, and this version reads format 1"),
        ("metrics", r"animals\S+\.json lacks 'metrics'"),
        ("checkpoint", r"animals\S+\.json is damaged"),
        ("cut", r"animals\S+\.json cannot be read"),
    ],
)
def test_a_cell_that_cannot_be_read_hides_no_other(
    folder: Path, how: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(folder, how)
    page, _ = report(folder)
    assert any(re.search(f"^sweep: .*{message}", words) for words in Page(page).words)
    assert "clip-vit" in page
    assert re.search(message, caplog.text)
    for path in (folder / "cells").rglob("*.json"):
        path.write_text("no json")
    with pytest.raises(DataError, match=r"^sweep: .*cannot be read"):
        report(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"baseline": "toy"},
            "baseline=toy is no checkpoint of the sweep; there are clip-vit, other/step_000400",
        ),
        ({"against": "x"}, "against=x is no checkpoint"),
        ({"baseline": "clip-vit", "against": "clip-vit"}, "baseline and against are both clip-vit"),
        (
            {"averages": {"all38": ["imagenet"]}},
            "averages.all38 names no data set of the sweep; there are animals",
        ),
        (
            {"shifts": {"sketch": "animals"}},
            "shifts: sketch: animals names sketch, which the sweep does not have",
        ),
        ({"shifts": {"animals": "photos"}}, "shifts: animals: photos names photos, which"),
    ],
)
def test_what_the_sweep_does_not_have_is_said(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        report(folder, **changes)


def test_a_folder_without_cells_is_no_sweep(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep=.*nothing is no folder"):
        report(folder / "nothing")
    shutil.rmtree(folder / "cells")
    (folder / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"sweep=.* holds no finished cell .*; there are notes\.txt"):
        report(folder)


def test_answers_of_the_helper_are_known() -> None:
    """What the other tests build on: the same at every call, and better models are right more often."""
    first, again = answers(MODELS[1], ANIMALS), answers(MODELS[1], ANIMALS)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert answers(MODELS[0], ANIMALS)[2].mean() < first[2].mean()
    assert seed_of("a", 1) != seed_of("a", 2)
