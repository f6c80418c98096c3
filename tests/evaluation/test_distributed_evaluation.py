from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from gloo import run_gloo
from tiny import COLOURS, tiny_loaded, write_tiny_cases, write_tiny_shards

from vlm.distributed import Topology
from vlm.evaluation import (
    CasesFromFiles,
    CasesFromShards,
    ClassesFromShards,
    Compositional,
    ImageRetrieval,
    LinearProbe,
    NearestNeighbours,
    Retrieval,
    ZeroShot,
    compositional,
    image_retrieval,
    nearest_neighbours,
    run_suite,
)
from vlm.evaluation.outcomes import Outcomes
from vlm.inference import Embedder

BATCH_SIZES = (2, 6)  # 7 and 3 batches of pictures: some ranks have none, of 2 as of 4
TEXTS = [f"a {name} square" for name in COLOURS for _ in range(2)] + ["红色的正方形", "a"]


def plain(outcomes: Outcomes) -> dict[str, Any]:
    """Lists, which compare; a value that does not count is None."""
    return {
        "picture": outcomes.picture.tolist(),
        "values": {
            metric: [None if np.isnan(value) else value for value in values.tolist()]
            for metric, values in outcomes.values.items()
        },
        "balanced": sorted(outcomes.balanced),
        "category": list(outcomes.category),
        "answer": list(outcomes.answer),
    }


def evaluate_all(shards: str) -> dict[int, dict[str, Any]]:
    """Vectors, records and results for every batch size."""
    cases = write_tiny_cases(Path(shards).parent)
    train, test = (str(Path(shards).with_name(name)) for name in ("0000[01].tar", "00002.tar"))
    suite = {
        "zero_shot": ZeroShot(
            shards,
            ClassesFromShards(shards, name="json.caption_en", label="json.colour"),
            label="json.colour",
            templates=["{c}", "there is {c}"],
        ),
        "retrieval": Retrieval(shards, ["json.caption_en", "json.caption_zh"], relevance="json.colour"),
        "choice": Compositional(
            CasesFromShards(
                shards, fields={"true_captions": "json.caption_en", "each_false_caption": "json.false"}
            )
        ),
        "files": Compositional(CasesFromFiles(str(cases), str(cases.parent))),
        "knn": NearestNeighbours(train, test, label="json.colour", k=3, temperature=0.07),
        "probe": LinearProbe(train, test, label="cls", l2=[1e-4, 1e-2, 1.0], validation_share=0.3, seed=0),
        "similar": ImageRetrieval(shards, None, label="json.colour", recall_at=[1, 5]),
        "gallery": ImageRetrieval(test, train, label="json.colour", recall_at=[1, 5]),
    }
    image_retrieval.TILE_ENTRIES, nearest_neighbours.QUERY_ROWS = 2 * 13, 1  # work for several ranks
    found: dict[int, dict[str, Any]] = {}
    for batch_size in BATCH_SIZES:
        embedder = Embedder(tiny_loaded(), Topology.current(), batch_size=batch_size, num_workers=0)
        images = embedder.images(shards)
        results = run_suite(suite, embedder)
        found[batch_size] = {
            "features": images.features.tolist(),
            "records": images.records,
            "texts": embedder.texts(TEXTS).features.tolist(),
            "metrics": {name: result.metrics for name, result in results.items()},
            "notes": {name: result.notes for name, result in results.items()},
            "text_only": {name: result.text_only for name, result in results.items()},
            "details": {name: result.details for name, result in results.items()},
            "outcomes": {name: list(map(plain, result.outcomes)) for name, result in results.items()},
        }
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), num_samples=13)


@pytest.fixture(scope="module")
def alone(shards: str) -> Iterator[dict[int, dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:  # what the call below sets is put back
        for module, name in ((image_retrieval, "TILE_ENTRIES"), (nearest_neighbours, "QUERY_ROWS")):
            patch.setattr(module, name, getattr(module, name))
        yield evaluate_all(shards)


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.long), 4])
def test_every_rank_gets_exactly_what_one_process_gets(
    shards: str, alone: dict[int, dict[str, Any]], tmp_path: Path, world_size: int
) -> None:
    assert run_gloo(evaluate_all, world_size, tmp_path, shards) == [alone] * world_size


NO_MEANS = ("median_rank", "tot_acc")


def test_a_metric_is_the_mean_of_its_outcomes(alone: dict[int, dict[str, Any]]) -> None:
    for name, metrics in alone[6]["metrics"].items():
        rebuilt: dict[str, float] = {}
        for part in alone[6]["outcomes"][name]:
            assert len(part["picture"]) == len(part["category"]) == len(part["answer"])
            for metric, values in part["values"].items():
                by_category: dict[str, list[float]] = defaultdict(list)
                for category, value in zip(part["category"], values, strict=True):
                    if value is not None:
                        by_category[category if metric in part["balanced"] else ""].append(value)
                rebuilt[metric] = fmean(map(fmean, by_category.values()))
        expected = {metric: value for metric, value in metrics.items() if not metric.endswith(NO_MEANS)}
        assert rebuilt == pytest.approx(expected, abs=1e-12), name


def test_a_right_picture_is_answered_by_its_class(alone: dict[int, dict[str, Any]]) -> None:
    for name, metric in (("zero_shot", "acc1"), ("knn", "knn_acc1"), ("probe", "lp_acc1")):
        (part,) = alone[6]["outcomes"][name]
        said = [a == c for a, c in zip(part["answer"], part["category"], strict=True)]
        right = [value == 1 for value in part["values"][metric]]
        assert not any(r and not s for r, s in zip(right, said, strict=True)), (
            name
        )  # a tie is said, not right
        assert set(part["category"]) <= set(COLOURS) | {f"a {name} square" for name in COLOURS} | {*"0123"}


def captions_alone(shards: str) -> dict[str, float]:
    """What the captions alone get, on ranks of which only the first can tell."""
    if not Topology.current().is_main:
        compositional.text_only_contests = None  # type: ignore[assignment]
    cases = CasesFromShards(
        shards, fields={"true_captions": "json.caption_en", "each_false_caption": "json.false"}
    )
    embedder = Embedder(tiny_loaded(), Topology.current(), batch_size=6, num_workers=0)
    return Compositional(cases)(embedder).text_only


def test_one_rank_reads_the_captions_alone_for_all(
    shards: str, alone: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    assert run_gloo(captions_alone, 2, tmp_path, shards) == [alone[6]["text_only"]["choice"]] * 2


def test_nothing_is_counted_twice(alone: dict[int, dict[str, Any]]) -> None:
    for found in alone.values():
        assert [record["key"] for record in found["records"]] == [f"{row:06d}" for row in range(13)]
