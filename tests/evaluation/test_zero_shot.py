from collections import defaultdict
from pathlib import Path

import pytest
import torch
from fake_embedder import FakeEmbedder

from vlm.errors import ConfigError, DataError
from vlm.evaluation import ClassesFromJson, ClassesFromJsonLists, ClassesFromText, ClassesListed, ZeroShot
from vlm.evaluation.zero_shot import read_templates, zero_shot_chance, zero_shot_metrics


def test_metrics_equal_a_slow_count() -> None:
    generator = torch.Generator().manual_seed(0)
    rank = torch.randint(1, 12, (200,), generator=generator)
    label = torch.randint(0, 9, (200,), generator=generator) * 2  # labels with gaps
    by_label = defaultdict(list)
    for r, value in zip(rank.tolist(), label.tolist(), strict=True):
        by_label[value].append(r == 1)
    recalls = [sum(hits) / len(hits) for hits in by_label.values()]
    metrics = zero_shot_metrics(rank, label, num_names=20)
    assert metrics == {
        "acc1": pytest.approx(sum(r == 1 for r in rank.tolist()) / 200),
        "acc5": pytest.approx(sum(r <= 5 for r in rank.tolist()) / 200),
        "mean_per_class_recall": pytest.approx(sum(recalls) / len(recalls)),
    }


def test_acc5_is_left_out_where_there_are_fewer_than_five_names() -> None:
    one = torch.ones(3, dtype=torch.int64)
    assert "acc5" not in zero_shot_metrics(one, one, num_names=4)
    assert "acc5" not in zero_shot_chance(torch.tensor([0, 1]), torch.arange(4))
    assert "acc5" in zero_shot_metrics(one, one, num_names=5)


def test_chance_counts_every_name_of_a_label() -> None:
    chance = zero_shot_chance(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 2, 3]))
    assert chance["acc1"] == pytest.approx((3 * 3 / 6 + 1 / 6) / 4)
    assert chance["mean_per_class_recall"] == pytest.approx((3 / 6 + 1 / 6) / 2)


def zero_shot(folder: Path, *, label: str = "cls") -> ZeroShot:
    (folder / "classnames.txt").write_text("cat\ndog\n")
    return ZeroShot("x.tar", ClassesFromText(str(folder / "classnames.txt")), label=label, templates=["{c}"])


def test_pictures_are_given_to_the_nearest_name(tmp_path: Path) -> None:
    embedder = FakeEmbedder(
        texts={"cat": [1.0, 0.0], "dog": [0.0, 1.0]},
        images=[[1.0, 0.1], [0.2, 1.0], [0.9, 0.8], [0.1, 1.0]],
        records=[{"key": str(row), "cls": cls} for row, cls in enumerate([0, 1, 1, 1])],
    )
    result = zero_shot(tmp_path)(embedder)
    assert result.metrics == {"acc1": 0.75, "mean_per_class_recall": pytest.approx((1 + 2 / 3) / 2)}
    assert result.num_samples == 4
    assert result.details["confused"] == [{"true": "dog", "guess": "cat", "count": 1}]


def test_of_classes_that_share_a_name_the_first_is_given_the_picture() -> None:
    classes = ClassesListed({"bomb": "missile", "glass": "sunglasses", "shades": ["sunglasses", "shades"]})
    embedder = FakeEmbedder(
        texts={"missile": [1.0, 0.0], "sunglasses": [0.0, 1.0], "shades": [-1.0, 0.0]},
        images=[[1.0, 0.0], [0.1, 1.0], [0.1, 1.0], [-1.0, 0.5]],
        records=[
            {"key": str(row), "cls": name} for row, name in enumerate(["bomb", "glass", "shades", "shades"])
        ],
    )
    result = ZeroShot("x.tar", classes, label="cls", templates=["{c}"])(embedder)
    assert result.metrics["acc1"] == 0.75
    assert result.outcomes[0].values["acc1"].tolist() == [1, 1, 0, 1]
    assert list(result.outcomes[0].answer) == ["missile", "sunglasses", "sunglasses", "sunglasses"]


def test_listed_names_are_texts() -> None:
    read = ClassesListed({"n01": "tench", 7: ["wolf", "grey wolf"]}).read()
    assert (read.names, read.labels) == (["tench", "wolf", "grey wolf"], ["n01", 7, 7])
    with pytest.raises(ConfigError, match=r"classes\.names is empty"):
        ClassesListed({}).read()
    listed = ClassesListed({"n01": "no"})
    listed.__dict__["names"] = {"n01": False}  # what yaml makes of a bare no
    with pytest.raises(ConfigError, match=r"classes\.names\.n01=False is no text; put it in quotes"):
        listed.read()


def names_in(path: Path, text: str) -> list[str]:
    path.write_text(text, encoding="utf-8")
    return ClassesFromText(str(path)).read().names


def test_names_of_a_file_are_stripped_and_end_with_the_last_one(tmp_path: Path) -> None:
    names = ["sea lion", "杯\u2028子", "cat"]
    assert names_in(tmp_path / "n.txt", " sea lion\t\n杯\u2028子\r\ncat") == names
    assert names_in(tmp_path / "n.txt", "\ufeffsea lion\n杯\u2028子\ncat\n \n\n") == names


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "names"
    with pytest.raises(DataError, match=r"names: line 2 is empty; it has to be the name of a class"):
        names_in(file, "cat\n \ndog\n")
    with pytest.raises(DataError, match=r"names: line 1 is empty"):
        names_in(file, "\n\n")
    file.write_text('[{"n": " cat", "id": 0}, {"n": " ", "id": 1}]')
    with pytest.raises(DataError, match=r"names: entry 1: 'n' is empty"):
        ClassesFromJson(str(file), name="n", label="id").read()
    file.write_text('{"en": ["cat ", ""], "de": ["Katze "]}')
    with pytest.raises(DataError, match=r"names: 'en': name 1 is empty"):
        ClassesFromJsonLists(str(file), "en").read()
    assert ClassesFromJsonLists(str(file), "de").read().names == ["Katze"]
    with pytest.raises(DataError, match=r"classes\.names\.7 is empty"):
        ClassesListed({0: "cat", 7: ["dog", ""]}).read()


def test_labels_without_a_picture_are_counted(tmp_path: Path) -> None:
    embedder = FakeEmbedder(
        texts={"cat": [1.0, 0.0], "dog": [0.0, 1.0]}, images=[[1.0, 0.0]], records=[{"key": "0", "cls": 0}]
    )
    names_in(tmp_path / "n.txt", "cat\ndog\ncat\n")
    found = ZeroShot("x.tar", ClassesFromText(str(tmp_path / "n.txt")), label="cls", templates=["{c}"])
    assert found(embedder).notes["num_absent"] == 2


def test_any_name_of_a_label_is_right(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(
        '[{"n": "woman", "id": "person"}, {"n": "man", "id": "person"}, {"n": "tree", "id": "plant"}]'
    )
    embedder = FakeEmbedder(
        texts={"woman": [1.0, 0.0], "man": [0.0, 1.0], "tree": [0.7, 0.7]},
        images=[[0.0, 1.0], [1.0, 0.0], [1.0, 0.9]],
        records=[
            {"key": str(row), "json": {"id": value}}
            for row, value in enumerate(["person", "person", "plant"])
        ],
    )
    classes = ClassesFromJson(str(tmp_path / "classes.json"), name="n", label="id")
    result = ZeroShot("x.tar", classes, label="json.id", templates=["{c}"])(embedder)
    assert result.metrics["acc1"] == 1.0
    assert result.chance["acc1"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)


@pytest.mark.parametrize(
    ("record", "found"), [({"cls": 7}, "cls=7"), ({}, "cls=None"), ({"cls": [1]}, r"cls=\[1\]")]
)
def test_a_label_outside_the_class_list_names_the_sample(tmp_path: Path, record: dict, found: str) -> None:
    embedder = FakeEmbedder(texts={}, images=[[1.0, 0.0]], records=[{"key": "00000012", **record}])
    with pytest.raises(DataError, match=f"sample 00000012 has {found}"):
        zero_shot(tmp_path)(embedder)


@pytest.mark.parametrize(
    ("templates", "message"), [([], "empty"), (["a photo"], "has no {c}"), ("no.txt", "no such")]
)
def test_templates_that_cannot_be_used_are_refused(templates: list[str] | str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_templates(templates)


def test_templates_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\ufeff一张{c}的图片\n\n a {c} \n  \n", encoding="utf-8")
    assert read_templates(str(tmp_path / "t.txt")) == ["一张{c}的图片", "a {c}"]


def test_a_class_file_without_the_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('[{"en": "cat", "id": 0}]')
    with pytest.raises(DataError, match="entry 0 has no 'name'"):
        ClassesFromJson(str(tmp_path / "classes.json"), name="name", label="id").read()
    with pytest.raises(ConfigError, match="no such file"):
        ClassesFromText(str(tmp_path / "absent.txt")).read()
