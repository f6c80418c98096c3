"""Folders as `vlm sweep` writes them, of answers drawn from a seed."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm.evaluation.bootstrap import interval, mean

CLASSIFICATION, RETRIEVAL, CHOICE = (
    "zeroshot_classification",
    "zeroshot_retrieval",
    "image_caption_selection",
)
MAIN = {
    CLASSIFICATION: "acc1",
    RETRIEVAL: "image_retrieval_recall@1",
    CHOICE: "macro_acc",
    "knn": "knn_acc1",
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint, and the share of queries that it gets right."""

    name: str
    skill: float
    run: str | None = None
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A data set and how it is asked about."""

    dataset: str
    task: str = CLASSIFICATION
    language: str | None = "en"
    templates: str | None = None
    categories: Sequence[str] = ("cat", "dog", "car")
    count: int = 60
    label: Sequence[int] | None = None
    """The category of each picture; drawn where it is None."""
    main: str | None = None
    pictures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        parts = [self.dataset, self.task, self.language, self.templates]
        return ".".join(part for part in parts if part)


def seed_of(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


def answers(model: Model, asked: Asked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True category, guess and whether it is right, of each query.

    How hard a query is depends on the data set alone, so that good models agree on what is easy.
    """
    hard = np.random.default_rng(seed_of(asked.dataset))
    own = np.random.default_rng(seed_of(model.name, asked.file))
    drawn = hard.integers(len(asked.categories), size=asked.count)
    true = drawn if asked.label is None else np.asarray(asked.label)
    hardness = hard.random(asked.count)
    right = 0.7 * hardness + 0.3 * own.random(asked.count) < model.skill
    other = (true + 1 + own.integers(max(1, len(asked.categories) - 1), size=asked.count)) % len(
        asked.categories
    )
    return true, np.where(right, true, other), right


def outcomes(model: Model, asked: Asked) -> pa.Table:
    """As a cell's parquet has them; retrieval has a query for each caption and for each picture."""
    true, guess, right = answers(model, asked)
    values, n = right.astype(np.float64), asked.count
    names = np.asarray(asked.categories, dtype=object)
    rows: dict[str, Any] = {
        "query": ["case" if asked.task == CHOICE else "picture"] * n,
        "picture": np.arange(n),
        "category": names[true],
        "answer": names[guess] if asked.task != CHOICE else [f"caption {number}" for number in guess],
        "asked": [""] * n,
    }
    balanced: list[str] = []
    if asked.task == CLASSIFICATION:
        rows |= {"acc1": values, "mean_per_class_recall": values}
        balanced = ["mean_per_class_recall"]
    elif asked.task == RETRIEVAL:
        nothing, none = [None] * n, [""] * n
        rows = {
            "query": ["picture"] * n + ["caption"] * n,
            "picture": np.concatenate([np.arange(n), np.arange(n)]),
            "category": none + none,
            "answer": [f"a caption of {place}" for place in guess] * 2,
            "asked": none + [f"caption {place}" for place in range(n)],
            "text_retrieval_recall@1": [*values.tolist(), *nothing],
            "image_retrieval_recall@1": [*nothing, *values[::-1].tolist()],
        }
    elif asked.task == CHOICE:
        rows |= {"acc": values, "macro_acc": values}
        balanced = ["macro_acc"]
    else:
        rows[MAIN[asked.task]] = values
    return pa.table(rows).replace_schema_metadata({"vlm": json.dumps({"balanced": balanced})})


def write_cell(folder: Path, model: Model, asked: Asked, **changes: Any) -> Path:
    """A finished cell; the path of its json."""
    table = outcomes(model, asked)
    balanced = json.loads(table.schema.metadata[b"vlm"])["balanced"]
    metrics, confidence = {}, {}
    for name in table.column_names[5:]:
        column = table[name].to_numpy()
        present = ~np.isnan(column)
        groups = np.asarray(table["category"].to_pylist())[present].tolist() if name in balanced else None
        metrics[name] = mean(column[present], groups)
        confidence[name] = list(interval(column[present], groups, resamples=200))
    main = asked.main or MAIN[asked.task]
    content = {
        "format": 1,
        "dataset": asked.dataset,
        "task": asked.task,
        "language": asked.language,
        "templates": asked.templates,
        "model": model.run or model.name,
        "pretrained": None if model.step is None else f"step_{model.step:06d}",
        "checkpoint": {
            "name": model.name,
            "run": model.run,
            "step": model.step,
            "weights": "model",
            "path": f"/runs/{model.name}",
            "sha256": f"{seed_of(model.name):08x}" * 8,
            "num_parameters": 2_860_024,
        },
        "preprocess": {"image_size": 32, "resize_mode": "shortest", "interpolation": "bicubic"},
        "metrics": metrics,
        "main_metric": main,
        "confidence": confidence,
        "chance": {main: 1 / len(asked.categories)},
        "text_only": {},
        "notes": {},
        "num_samples": asked.count,
        "counts": {"samples": asked.count},
        "data": {"name": asked.dataset},
        "data_sha256": f"{seed_of(asked.dataset):08x}" * 8,
        "pictures": dict(asked.pictures),
        "seconds": {"images": 2.5, "texts": 0.4, "scores": 0.1, "total": 3.0},
        "cached": {"images": False, "texts": False},
        "fingerprint": f"{seed_of(model.name, asked.file):08x}",
        "created": "2026-05-04T08:12:30+00:00",
        "versions": {"vlm": "0.1.0", "torch": "2.11.0"},
    } | changes
    path = folder / "cells" / model.name / f"{asked.file}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path.with_suffix(".outcomes.parquet"))
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_failure(folder: Path, model: Model, asked: Asked, error: str) -> Path:
    """A cell that failed."""
    cell = {
        "checkpoint": model.name,
        "dataset": asked.dataset,
        "task": asked.task,
        "language": asked.language,
        "templates": asked.templates,
    }
    path = folder / "failed" / model.name / f"{asked.file}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cell": cell, "error": error}, ensure_ascii=False), encoding="utf-8")
    return path


def write_sweep(folder: Path, models: Sequence[Model], questions: Sequence[Asked]) -> Path:
    """Every model asked every question."""
    for model in models:
        for asked in questions:
            write_cell(folder, model, asked)
    return folder


def steps(run: str, skills: Sequence[float], *, every: int = 400) -> list[Model]:
    """Checkpoints of one run."""
    return [
        Model(name=f"{run}/step_{every * (n + 1):06d}", run=run, step=every * (n + 1), skill=skill)
        for n, skill in enumerate(skills)
    ]
