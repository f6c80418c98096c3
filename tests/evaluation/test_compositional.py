import json
import logging
import random
from pathlib import Path

import pytest
import torch
from fake_embedder import FakeEmbedder
from PIL import Image
from tiny import tiny_loaded

from vlm.distributed import Topology
from vlm.errors import DataError
from vlm.evaluation import CasesFromFiles, CasesFromShards, Compositional
from vlm.inference import Embedder

TOY = [
    {"category": "replaced", "true_captions": "txt", "each_false_caption": "json.replaced"},
    {"category": "swapped", "true_captions": "txt", "each_false_caption": "json.swapped"},
]


def samples() -> FakeEmbedder:
    return FakeEmbedder(
        texts={"red": [1.0, 0.0], "blue": [0.0, 1.0], "green": [0.5, 0.0], "same": [1.0, 0.0]},
        images=[[1.0, 0.2], [0.1, 1.0]],
        records=[
            {"key": "a", "txt": "red", "json": {"replaced": ["blue", "green"], "swapped": "same"}},
            {"key": "b", "txt": "green", "json": {"replaced": ["blue"], "swapped": []}},
        ],
    )


def test_each_false_caption_of_a_sample_is_a_case_and_kinds_are_apart() -> None:
    result = Compositional(CasesFromShards("x.tar", fields=TOY))(samples())
    assert result.metrics == {
        "replaced_acc": pytest.approx(2 / 3),
        "swapped_acc": 0.5,
        "acc": pytest.approx(2.5 / 4),
        "macro_acc": pytest.approx((2 / 3 + 0.5) / 2),
    }
    assert set(result.chance.values()) == {0.5}
    assert result.chance.keys() == result.metrics.keys()
    examples = result.details["examples"]["replaced"]
    assert [row["false"] for row in examples["won"]] == ["blue", "green"]
    assert [(row["sample"], row["true"], row["false"]) for row in examples["lost"]] == [(1, "green", "blue")]
    assert result.details["shards"] == ["x.tar"]
    assert result.details["pictures"] == [0, 1]


def test_a_kind_that_no_sample_has_is_refused() -> None:
    fields = [*TOY, {"true_captions": "txt", "each_false_caption": "json.added"}]
    with pytest.raises(DataError, match=r"cases.fields: no sample of x.tar has anything in 'json.added'"):
        Compositional(CasesFromShards("x.tar", fields=fields))(samples())


def test_a_caption_with_a_label_makes_groups_and_a_threshold() -> None:
    """Of two sentences of two pictures each, one tells them apart."""
    records = [
        {"key": str(row), "json": {"s": text, "label": label, "group": group}}
        for row, (text, label, group) in enumerate(
            [("red", True, 1), ("red", False, 1), ("blue", True, 2), ("blue", False, 2), ("red", True, 3)]
        )
    ]
    images = [[0.9, 0.0], [0.3, 0.0], [0.0, 0.5], [0.0, 0.6], [0.7, 0.0]]
    embedder = FakeEmbedder(texts={"red": [1.0, 0.0], "blue": [0.0, 1.0]}, images=images, records=records)
    cases = CasesFromShards(
        "x.tar", fields={"caption": "json.s", "label": "json.label", "group": "{json.group}"}
    )
    result = Compositional(cases, tune=cases)(embedder)
    assert result.metrics == {"group_score": 0.5, "true_false_acc": 4 / 5}
    assert result.chance == {"group_score": 0.5, "true_false_acc": 3 / 5}
    assert result.notes["threshold"] == pytest.approx(0.4)  # the lowest of the best
    assert result.notes["num_groups"] == 2
    (part,) = result.outcomes
    assert (part.query, part.picture.tolist()) == ("group", [0, 2])
    assert part.values["group_score"].tolist() == [1, 0]
    won, lost = (result.details["examples"]["groups"][outcome] for outcome in ("won", "lost"))
    assert [(row["caption"], [item["position"] for item in row["found"]]) for row in won] == [("red", [0, 1])]
    assert [[item["relevant"] for item in row["found"]] for row in lost] == [[False, True]]


def write_cases(
    folder: Path, cases: list[dict[str, object]], *, missing: tuple[int, ...] = ()
) -> CasesFromFiles:
    """Picture i of case i, unless it is missing."""
    for row in range(len(cases)):
        if row not in missing:
            (folder / f"{row}.png").touch()
    lines = [json.dumps({"image": f"{row}.png"} | case) for row, case in enumerate(cases)]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return CasesFromFiles(str(folder / "*.jsonl"), str(folder))


def random_vectors(num_images: int, texts: list[str]) -> FakeEmbedder:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_images + len(texts), 16, generator=generator)
    unit = torch.nn.functional.normalize(vectors, dim=1).tolist()
    return FakeEmbedder(texts=dict(zip(texts, unit[num_images:], strict=True)), images=unit, records=[])


def test_accuracies_equal_a_plain_recomputation_in_double_precision(tmp_path: Path) -> None:
    texts = [f"caption {number}" for number in range(50)]
    rng = random.Random(0)
    cases: list[dict[str, object]] = [
        {
            "true_captions": rng.choice(texts),
            "false_captions": rng.choice(texts),
            "category": rng.choice(["a", "b", "c"]),
        }
        for _ in range(300)
    ]
    embedder = random_vectors(300, texts)
    result = Compositional(write_cases(tmp_path, cases))(embedder)
    won: dict[str, list[float]] = {}
    for row, case in enumerate(cases):
        picture, true, false = (
            torch.tensor(vector, dtype=torch.float32).double()
            for vector in (
                embedder.rows[row],
                embedder.vectors[case["true_captions"]],
                embedder.vectors[case["false_captions"]],
            )
        )
        margin = float(picture @ true - picture @ false)
        won.setdefault(str(case["category"]), []).append(0.5 if margin == 0 else float(margin > 0))
    means = {f"{name}_acc": sum(values) / len(values) for name, values in won.items()}
    everything = [value for values in won.values() for value in values]
    expected = means | {"acc": sum(everything) / 300, "macro_acc": sum(means.values()) / 3}
    assert result.metrics == pytest.approx(expected, abs=1e-12)
    assert result.num_samples == 300
    assert result.details["counts"] == {f"{name}_acc": len(values) for name, values in won.items()}


def test_two_true_captions_have_to_beat_the_false_one_and_are_compared_without_the_picture(
    tmp_path: Path,
) -> None:
    cases: list[dict[str, object]] = [{"true_captions": ["near", "far"], "false_captions": ["wrong"]}] * 2
    embedder = FakeEmbedder(
        texts={"near": [1.0, 0.0, 0.0], "far": [0.8, 0.6, 0.0], "wrong": [0.6, 0.0, 0.8]},
        images=[[1.0, 0.0, 0.0], [0.0, 0.1, 1.0]],
        records=[],
    )
    result = Compositional(write_cases(tmp_path, cases))(embedder)
    assert result.metrics == {"mine_acc": 0.5, "mine_tot_acc": 1.0}
    assert result.chance == {"mine_acc": pytest.approx(1 / 3), "mine_tot_acc": pytest.approx(1 / 3)}


def test_missing_pictures_are_counted_and_break_their_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = [{"true_captions": "t0"}, {"false_captions": "t0"}, {"false_captions": "t0"}]
    cases: list[dict[str, object]] = [case | {"group": name} for name in ("x", "y") for case in group]
    evaluator = Compositional(write_cases(tmp_path, cases, missing=(5,)))
    with caplog.at_level(logging.WARNING):
        evaluator.check()
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 6 cases are left out: their pictures are missing, the first is {tmp_path / '5.png'}"
    ]
    result = evaluator(random_vectors(5, ["t0"]))
    found = {name: result.notes[name] for name in ("num_cases", "num_missing", "num_groups")}
    assert found == {"num_cases": 5, "num_missing": 1, "num_groups": 1}


def test_damaged_pictures_count_as_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of three cases with tiny pictures, the second's is no image."""
    case = {"true_captions": "a red square", "false_captions": "a blue square", "category": "c"}
    cases: list[dict[str, object]] = [case | {"group": str(row)} for row in range(3)]
    source = write_cases(tmp_path, cases)
    for row in (0, 2):
        Image.new("RGB", (20, 20), "red").save(tmp_path / f"{row}.png")
    embedder = Embedder(tiny_loaded(), Topology.current(), batch_size=2, num_workers=0)
    result = Compositional(source)(embedder)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"1 of 3 pictures are left out; {tmp_path / '1.png'} cannot be evaluated: ")
    assert (result.notes["num_cases"], result.notes["num_missing"], result.num_samples) == (2, 1, 2)
    assert result.details["pictures"] == [0, 2]
    assert source.embed(embedder)[0].broken_groups == {"mine/1"}
    for row in (0, 2):
        (tmp_path / f"{row}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no picture can be read; .*0.png cannot be evaluated"):
        Compositional(source)(embedder)


def test_cases_that_compare_nothing_are_refused(tmp_path: Path) -> None:
    evaluator = Compositional(write_cases(tmp_path, [{"true_captions": "t"}, {"false_captions": "t"}]))
    with pytest.raises(DataError, match=r"none of 2 has both true and false captions, or a group"):
        evaluator.check()


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["macro", "b"], r"macro_acc would be a metric of the category 'macro' and of the whole"),
        (["a b", "a_b"], r"a_b_acc would be a metric of the category 'a_b' and of the category 'a b'"),
        (["a", "a_tot"], r"a_tot_acc would be a metric of the category 'a_tot' and of the category 'a'"),
    ],
)
def test_categories_whose_accuracies_would_overwrite_each_other_are_refused(
    tmp_path: Path, categories: list[str], message: str
) -> None:
    case = {"true_captions": "t", "false_captions": "f"}
    evaluator = Compositional(write_cases(tmp_path, [case | {"category": name} for name in categories]))
    with pytest.raises(DataError, match=message):
        evaluator.check()
    with pytest.raises(DataError, match=message):
        evaluator(random_vectors(2, ["t", "f"]))


def test_the_captions_alone_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[dict[str, object]] = [
        {"true_captions": f"a {n}", "false_captions": f"no {n}"} for n in range(30)
    ]
    evaluator = Compositional(write_cases(tmp_path, cases))
    embedder = random_vectors(30, [f"{word} {n}" for word in ("a", "no") for n in range(30)])
    first = evaluator(embedder).text_only
    assert first == {"mine_acc": 1.0}
    monkeypatch.setattr("vlm.evaluation.compositional.text_only_contests", None)
    assert evaluator(embedder).text_only == first
