from pathlib import Path
from typing import Any

import pytest
import torch
from fake_embedder import FakeEmbedder

from vlm.errors import DataError
from vlm.evaluation import ClassesFromJson, MultiLabelZeroShot, multi_label
from vlm.evaluation.multi_label import average_precision

NAMES = {"cat": [1.0, 0.0, 0.0], "dog": [0.0, 1.0, 0.0], "tree": [0.0, 0.0, 1.0], "oak": [0.5, 0.0, 0.9]}
LABELS = {"cat": "cat", "dog": "dog", "tree": "plant", "oak": "plant"}


def slow_precision(scores: list[float], true: list[bool]) -> float:
    """The precision at each true one, wrong ones standing first among equals."""
    rows = sorted(zip(scores, true, strict=True), key=lambda row: (-row[0], row[1]))
    hits = [sum(good for _, good in rows[:place]) / place for place in range(1, len(rows) + 1)]
    found = [hit for hit, (_, good) in zip(hits, rows, strict=True) if good]
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_slow_loops_with_ties(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (20, 7), generator=generator).float()
    true = torch.rand(20, 7, generator=generator) < 0.3
    true[:, 3] = False
    expected = [slow_precision(scores[:, k].tolist(), true[:, k].tolist()) for k in range(7)]
    assert average_precision(scores, true).tolist() == pytest.approx(expected)
    order = torch.randperm(20, generator=generator)
    assert average_precision(scores[order], true[order]).tolist() == pytest.approx(expected)


def test_a_model_gone_to_nan_finds_the_right_ones_last() -> None:
    true = torch.tensor([[True], [False], [False], [True]])
    found = average_precision(torch.full((4, 1), torch.nan), true)
    assert found.tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2])


def data(labels: list[Any], *, seed: int = 0) -> FakeEmbedder:
    images = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed)).tolist()
    records = [{"key": str(row), "json": {"labels": own}} for row, own in enumerate(labels)]
    return FakeEmbedder(texts=NAMES, images=images, records=records)


def evaluator(folder: Path) -> MultiLabelZeroShot:
    entries = ", ".join(f'{{"name": "{name}", "label": "{label}"}}' for name, label in LABELS.items())
    (folder / "classes.json").write_text(f"[{entries}]")
    classes = ClassesFromJson(str(folder / "classes.json"), name="name", label="label")
    return MultiLabelZeroShot("x.tar", classes, label="json.labels", templates=["{c}"])


@pytest.mark.parametrize("entries", [multi_label.BLOCK_ENTRIES, 1])
def test_the_metric_is_the_mean_over_the_classes_that_occur(
    tmp_path: Path, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_label, "BLOCK_ENTRIES", entries)
    labels = [["cat", "plant"], [], ["plant"], ["cat"], "plant", ["plant", "plant"]]
    embedder = data(labels)
    result = evaluator(tmp_path)(embedder)
    scores = torch.tensor(embedder.rows) @ torch.tensor(list(NAMES.values())).T
    plant = scores[:, 2:].max(dim=1).values.tolist()
    cat = slow_precision(scores[:, 0].tolist(), ["cat" in own for own in labels])
    expected = [cat, slow_precision(plant, ["plant" in own for own in labels])]
    assert result.metrics["mean_average_precision"] == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert (result.num_samples, result.notes["num_absent"]) == (6, 1)
    (rows,) = result.outcomes
    assert rows.values["mean_average_precision"].tolist() == pytest.approx(expected, abs=1e-6)
    assert (rows.query, rows.category, rows.picture.tolist()) == ("class", ["cat", "tree"], [0, 0])
    assert result.details["examples"][0]["true"] == "cat, tree"
    assert [guess["relevant"] for guess in result.details["examples"][2]["guesses"]].count(True) == 2


def test_chance_equals_the_mean_over_shuffled_scores(tmp_path: Path) -> None:
    labels = [["cat", "dog"], ["cat"], [], ["cat"], [], ["plant"], []]
    chance = evaluator(tmp_path)(data(labels)).chance["mean_average_precision"]
    true = [[name in own for own in labels] for name in ("cat", "dog", "plant")]
    generator = torch.Generator().manual_seed(0)
    found = [
        sum(slow_precision(torch.rand(7, generator=generator).tolist(), own) for own in true) / 3
        for _ in range(3000)
    ]
    assert chance == pytest.approx(sum(found) / 3000, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [["cat"], ["cow", "dog"], ["hen"]],
            r"sample 1 has json.labels='cow', which is not in the class list .*: the samples have 4 labels, "
            "the list has names for 3, and 2 labels are without",
        ),
        ([["cat"], [1.5]], r"sample 1 has json.labels=\[1.5\]; expected a list of numbers or texts"),
        ([["cat"], None], r"sample 1 has json.labels=None; expected a list"),
        ([[], []], r"no sample of x.tar has a label in json.labels; set `label`"),
    ],
)
def test_labels_that_fit_no_names_are_refused(tmp_path: Path, labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluator(tmp_path)(data(labels))
