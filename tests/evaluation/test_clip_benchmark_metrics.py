"""Metrics of CLIP_benchmark 1.6.2 for written vectors, made by `golden.py` of the record of its parity."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import FakeEmbedder

from vlm.evaluation import ClassesFromText, MultiLabelZeroShot, Retrieval, ZeroShot

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("clip_benchmark_golden.json").read_text())


def embedder(field: str, values: list[Any]) -> FakeEmbedder:
    records = [{"key": str(row), "json": {field: value}} for row, value in enumerate(values)]
    return FakeEmbedder(texts=GOLDEN["texts"], images=GOLDEN["images"], records=records)


def classes(folder: Path) -> ClassesFromText:
    (folder / "names.txt").write_text("\n".join(GOLDEN["names"]))
    return ClassesFromText(str(folder / "names.txt"))


def test_classification(tmp_path: Path) -> None:
    evaluator = ZeroShot("x", classes(tmp_path), label="json.label", templates=GOLDEN["templates"])
    metrics = evaluator(embedder("label", GOLDEN["labels"])).metrics
    assert metrics == pytest.approx(GOLDEN["expected"]["classification"], abs=1e-6)


def test_retrieval_with_five_captions() -> None:
    metrics = Retrieval("x", "json.captions", relevance=None)(
        embedder("captions", GOLDEN["captions"])
    ).metrics
    expected = GOLDEN["expected"]["retrieval"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_several_labels(tmp_path: Path) -> None:
    evaluator = MultiLabelZeroShot("x", classes(tmp_path), label="json.labels", templates=GOLDEN["templates"])
    metrics = evaluator(embedder("labels", GOLDEN["several"])).metrics
    assert metrics == pytest.approx(GOLDEN["expected"]["several"], abs=1e-6)
