"""Cases from files: the documented format, the mappings of published ones, and what is wrong in them."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from vlm.errors import ConfigError, DataError
from vlm.evaluation import CasesFromFiles, Compositional
from vlm.evaluation.case_fields import Case
from vlm.settings import build_evaluators, config_dir, register_schemas, resolve


def place(folder: Path, name: str, content: Any) -> None:
    """An annotation file as its name says: json, one json a line, or either of them compressed."""
    lines = content if ".jsonl" in name else [content]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def read_suite(name: str, folder: Path, pattern: str, images: list[str]) -> list[Case]:
    """The cases of a published benchmark, read as `vlm evaluate suite=compositional/NAME` does."""
    for image in images:
        (folder / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / image).touch()
    register_schemas()
    keys = [f"suite.annotations={folder}/{pattern}", f"suite.images={folder}/images"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        suite = resolve(compose("evaluate", ["run=x", f"suite=compositional/{name}", *keys]))["suite"]
    (evaluator,) = build_evaluators(suite).values()
    assert isinstance(evaluator, Compositional)
    evaluator.check()
    return evaluator.source.read().cases


def test_the_documented_format(tmp_path: Path) -> None:
    for image in ("a.jpg", "b.jpg"):
        (tmp_path / image).touch()
    place(
        tmp_path,
        "mine.v2.jsonl.gz",
        [
            {
                "image": "a.jpg",
                "true_captions": "t",
                "false_captions": ["f", "g"],
                "category": "swap",
                "group": 7,
            },
            {
                "image": "b.jpg",
                "true_captions": ["t", "u"],
                "false_captions": "f",
                "box": [1, 2, 3.5, 4],
                "group": None,
            },
        ],
    )
    assert CasesFromFiles(str(tmp_path / "*.gz"), str(tmp_path)).read().cases == [
        Case(image="a.jpg", true=("t",), false=("f", "g"), category="swap", group="mine/7"),
        Case(image="b.jpg", true=("t", "u"), false=("f",), category="mine", box=(1.0, 2.0, 3.5, 4.0)),
    ]


def test_sugarcrepe_has_a_file_for_each_category(tmp_path: Path) -> None:
    entry = {"filename": "1.jpg", "caption": "A cat on a dog.", "negative_caption": "A dog on a cat."}
    place(tmp_path, "swap_obj.json", {"0": entry})
    place(tmp_path, "add_att.json", {"0": entry, "1": entry})
    cases = read_suite("sugarcrepe", tmp_path, "*.json", ["1.jpg"])
    assert [case.category for case in cases] == ["add_att", "add_att", "swap_obj"]
    assert cases[0].true == ("A cat on a dog.",)
    assert cases[0].false == ("A dog on a cat.",)


def test_sugarcrepe_pp_has_two_true_captions(tmp_path: Path) -> None:
    entry = {"id": 3, "filename": "1.jpg", "caption": "a", "caption2": "b", "negative_caption": "c"}
    place(tmp_path, "swap_object.jsonl", [entry])
    (case,) = read_suite("sugarcrepe_pp", tmp_path, "*.jsonl", ["1.jpg"])
    assert (case.true, case.false, case.category) == (("a", "b"), ("c",), "swap_object")


def test_valse_keeps_what_two_of_three_annotators_confirmed(tmp_path: Path) -> None:
    entry = {"image_file": "v7w_1.jpg", "caption": "There are 4 cars.", "foil": "There are 0 cars."}
    votes = [(3, 0), (2, 1), (1, 1), (1, 2)]
    place(
        tmp_path,
        "counting-hard.json.gz",
        {
            str(row): entry | {"mturk": {"caption": caption, "foil": foil, "other": 3 - caption - foil}}
            for row, (caption, foil) in enumerate(votes)
        },
    )
    cases = read_suite("valse", tmp_path, "*.json.gz", ["v7w_1.jpg"])
    assert [case.category for case in cases] == ["counting-hard"] * 2
    assert cases[0].false == ("There are 0 cars.",)


def aro(**more: Any) -> dict[str, Any]:
    box = {"bbox_x": 10, "bbox_y": 20, "bbox_w": 30, "bbox_h": 40}
    captions = {"true_caption": "the cat is on the mat", "false_caption": "the mat is on the cat"}
    return {"image_id": "5", "image_path": "5.jpg", **box, **captions, **more}


def test_aro_relation_is_cut_out_and_counted_by_relation(tmp_path: Path) -> None:
    place(tmp_path, "visual_genome_relation.json", [aro(relation_name="to the left of")])
    (case,) = read_suite("aro_relation", tmp_path, "*.json", ["5.jpg"])
    assert case.box == (10.0, 20.0, 30.0, 40.0)
    assert case.category == "to the left of"
    assert case.true == ("the cat is on the mat",)


def test_aro_attribution_is_counted_by_pair_of_attributes(tmp_path: Path) -> None:
    place(tmp_path, "visual_genome_attribution.json", [aro(attributes=["open", "white"])])
    (case,) = read_suite("aro_attribution", tmp_path, "*.json", ["5.jpg"])
    assert case.category == "open_white"


@pytest.mark.parametrize(("name", "field"), [("aro_order", "image"), ("whatsup", "image_path")])
def test_the_first_of_several_options_is_true(tmp_path: Path, name: str, field: str) -> None:
    options = ["a cup on a table", "a cup under a table", "a cup left of a table", "a cup right of a table"]
    place(tmp_path, "controlled.json", [{field: "data/x/cup.jpeg", "caption_options": options}])
    (case,) = read_suite(name, tmp_path, "*.json", ["data/x/cup.jpeg"])
    assert (case.image, case.true, case.false) == ("data/x/cup.jpeg", (options[0],), tuple(options[1:]))


def test_winoground_has_two_cases_an_entry(tmp_path: Path) -> None:
    entry = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "c0", "caption_1": "c1"}
    place(tmp_path, "examples.jsonl", [entry | {"tag": "Adjective", "num_main_preds": 1}])
    cases = read_suite("winoground", tmp_path, "*.jsonl", ["ex_0_img_0.png", "ex_0_img_1.png"])
    assert [(case.image, case.true, case.false) for case in cases] == [
        ("ex_0_img_0.png", ("c0",), ("c1",)),
        ("ex_0_img_1.png", ("c1",), ("c0",)),
    ]
    assert {case.group for case in cases} == {"examples/0"}


def test_a_caption_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    entry = {"image": "a.jpg", "true_captions": "a dog\n  on grass\n", "options": ["a cat\r\nasleep", "b"]}
    place(tmp_path, "mine.json", [entry])
    for name, true, false in (
        ("true_captions", ("a dog on grass",), ()),
        ("options", ("a cat asleep",), ("b",)),
    ):
        fields = {"image": "{image}", name: name}
        (case,) = CasesFromFiles(str(tmp_path / "*.json"), str(tmp_path), fields=fields).read().cases
        assert (case.true, case.false) == (true, false)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_byte_order_marks_and_line_separators_in_texts_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").touch()
    entry = '{"image": "a.jpg", "true_captions": "one\u2028line"}'
    lines = f"{entry}\r\n{entry}\n" if name == "x.jsonl" else f"[{entry}, {entry}]"
    (tmp_path / name).write_bytes(lines.encode("utf-8-sig"))
    cases = CasesFromFiles(str(tmp_path / name), str(tmp_path)).read().cases
    assert [case.true for case in cases] == [("one line",)] * 2


def test_fields_may_be_places_in_lists_and_numbers_be_padded(tmp_path: Path) -> None:
    (tmp_path / "000000000042.jpg").touch()
    place(tmp_path, "coco_one.json", [[42, "true", "false"]])
    source = CasesFromFiles(
        str(tmp_path / "*.json"),
        str(tmp_path),
        fields={"image": "{0:012}.jpg", "true_captions": "1", "false_captions": "2"},
    )
    assert source.read().cases == [
        Case(image="000000000042.jpg", true=("true",), false=("false",), category="coco_one")
    ]


def test_pictures_are_looked_for_in_every_folder_and_shared_by_cases(tmp_path: Path) -> None:
    for folder, image in (("one", "a.jpg"), ("two", "a.jpg"), ("two", "b.jpg")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / image).touch()
    names = ["b.jpg", "a.jpg", "c.jpg", "b.jpg"]
    place(
        tmp_path,
        "mine.jsonl",
        [{"image": name, "true_captions": "t", "false_captions": "f"} for name in names],
    )
    source = CasesFromFiles(str(tmp_path / "mine.jsonl"), [str(tmp_path / "one"), str(tmp_path / "two")])
    found = source.read()
    assert (found.picture, found.num_missing, found.first_missing) == ([0, 1, 0], 1, f"{tmp_path}/one/c.jpg")
    (files,) = source.pictures()
    assert [file.path for file in files.read().files] == [f"{tmp_path}/two/b.jpg", f"{tmp_path}/one/a.jpg"]


GOOD = {"image": "a.jpg", "true_captions": "t", "false_captions": "f"}
MAPPED = {"image": "{image}", "true_captions": "true_captions", "false_captions": "false_captions"}


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"0": GOOD | {"negative": "x"}}, {}, r"entry 0 has the field 'negative', which the format of cases"),
        ([{"image": "a.jpg"}], {}, r"entry 0 has neither true_captions nor false_captions"),
        (
            [{"true_captions": "t", "false_captions": "f"}],
            {},
            r"entry 0 has no 'image' \(it has true_captions, false_captions\)",
        ),
        (["text"], {}, r"entry 0 is 'text', not an object"),
        ("text", {}, r"has to hold a list or a mapping of entries"),
        ([GOOD | {"true_captions": 5}], {}, r"entry 0 has true_captions=5, not a text or a list of texts"),
        ([GOOD | {"true_captions": [], "false_captions": " "}], {}, r"entry 0 has no caption"),
        ([GOOD | {"box": [1, 2, 0, 4]}], {}, r"has the box \[1, 2, 0, 4\], not left, top, width and height"),
        ([GOOD | {"box": [1, 2, math.nan, 4]}], {}, r"has the box \[1, 2, nan, 4\], not left, top, width"),
        ([GOOD | {"box": [1, -math.inf, 3, 4]}], {}, r"has the box \[1, -inf, 3, 4\], not left, top, width"),
        ([], {}, r"hold no cases"),
        (
            [GOOD],
            {"fields": MAPPED | {"true_captions": "capt"}},
            r"entry 0 has no 'capt' \(it has .*correct cases.fields",
        ),
        ([GOOD], {"at_least": {"votes": 2}}, r"entry 0 has votes=None, not a number; correct cases.at_least"),
        ([GOOD | {"image": "b.jpg"}] * 2, {}, r"cases.images=.*none of 2 cases .* would be .*b.jpg"),
        (
            [GOOD | {"true_captions": "yes"}],
            {"fields": {"image": "{image}", "caption": "false_captions", "label": "true_captions"}},
            r"entry 0 has true_captions='yes', not true or false",
        ),
        (
            [GOOD | {"false_captions": ["", "wrong", "x"]}],
            {"fields": {"image": "{image}", "options": "false_captions"}},
            r"entry 0 has false_captions=\['', 'wrong', 'x'\] with an empty option; the first has",
        ),
        (
            [GOOD | {"true_captions": []}],
            {"fields": {"image": "{image}", "options": ["true_captions", "false_captions"]}},
            r"entry 0 has true_captions=\[\] with an empty option",
        ),
    ],
)
def test_bad_annotations_are_told_by_entry(
    tmp_path: Path, content: Any, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.jpg").touch()
    place(tmp_path, "mine.json", content)
    with pytest.raises(DataError, match=message):
        CasesFromFiles(str(tmp_path / "mine.json"), str(tmp_path), **arguments).read()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.json", b'{"image": 1}\n{"image": 2}', r"x.json is no json: .*one case a line is for files named"),
        ("x.jsonl", b'{"image": "a.jpg", "true_captions": "t"}\n\n{cut', r"x.jsonl: line 3 is no json"),
        ("x.json.gz", b"not compressed", r"x.json.gz cannot be read"),
        ("x.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], r"x.json.gz cannot be read"),
        ("x.json", b"\xff\xfe", r"x.json cannot be read"),
    ],
)
def test_files_that_are_no_json_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        CasesFromFiles(str(tmp_path / name), str(tmp_path)).read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (MAPPED | {"negative": "x"}, r"cases.fields.negative is not a key of the configuration"),
        ({"image": "{image}"}, r"cases.fields names no captions; set one of true_captions, false_captions"),
        ({"image": "{image}", "caption": "c"}, r"caption and label go together"),
        (
            {"true_captions": "t", "false_captions": "f"},
            r"cases.fields names no image; set image, such as '\{filename\}'",
        ),
        (MAPPED | {"image": ["a"]}, r"cases.fields.image=\['a'\] has to be a text"),
        (MAPPED | {"true_captions": 3}, r"cases.fields.true_captions=3 has to name a field"),
        ([], r"cases.fields is empty"),
    ],
)
def test_bad_mappings_are_told_by_key(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CasesFromFiles(str(tmp_path), str(tmp_path), fields=fields)


def test_what_is_no_source_of_cases_is_told_by_key() -> None:
    node = {"_target_": "vlm.evaluation.Compositional", "cases": "x.json"}
    with pytest.raises(ConfigError, match=r"mine.cases='x.json' is a str; expected CaseSource"):
        build_evaluators({"images": ["a", "b"], "evaluators": {"mine": node}})


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cases.images=.*/no: no such folder"):
        CasesFromFiles("x.json", str(tmp_path / "no")).read()
    with pytest.raises(ConfigError, match=r"cases.files='.*\*.json' matches no file"):
        CasesFromFiles(str(tmp_path / "*.json"), str(tmp_path)).read()
