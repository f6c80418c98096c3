import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_shards import image_bytes
from tiny import tiny_loaded, write_tiny_shards
from torchvision.datasets import ImageFolder as TorchvisionFolder

from vlm.data import ImageFile, ImageSet, ImageSource
from vlm.distributed import Topology
from vlm.errors import ConfigError, DataError, VlmError
from vlm.evaluation import (
    CaptionLines,
    CaptionsFromShards,
    ChineseClipImages,
    ClassesFromShards,
    CocoImages,
    ImageFolder,
    ImageTable,
    NearestNeighbours,
    Retrieval,
    Xm3600Images,
    XtdImages,
    ZeroShot,
)
from vlm.evaluation.evaluator import parts, pictures_at, records_of
from vlm.inference import Embedder

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200)}


def write_picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(COLOURS[colour], size=(20, 20)))


def write_folder(root: Path) -> ImageFolder:
    for name, images in {"red": ["b.png", "a.JPG"], "green": ["deep/er/c.png"], "blue": ["d.png"]}.items():
        for image in images:
            write_picture(root / name / image, name)
    (root / "blue" / "notes.txt").write_text("no picture")
    (root / "README.md").write_text("no class")
    return ImageFolder(str(root))


def embedder(**changes: Any) -> Embedder:
    return Embedder(tiny_loaded(), Topology.current(), **{"batch_size": 2, "num_workers": 0, **changes})


def names(source: ImageSource) -> list[str]:
    return [Path(file.path).name for file in source.read().files]


def captions(source: ImageSource) -> dict[str, list[str]]:
    return {record["key"]: record["json"]["captions"] for record in source.read().records}


def test_a_folder_is_read_in_the_order_and_with_the_classes_of_torchvision(tmp_path: Path) -> None:
    images = write_folder(tmp_path).read()
    found = [(file.path, record["cls"]) for file, record in zip(images.files, images.records, strict=True)]
    assert found == TorchvisionFolder(str(tmp_path)).samples
    assert [record["json"]["class"] for record in images.records] == ["blue", "green", "red", "red"]
    assert [record["key"] for record in images.records][1] == "green/deep/er/c.png"


def test_a_folder_without_pictures_of_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folders in it"):
        ImageFolder(str(tmp_path)).read()
    write_folder(tmp_path)
    (tmp_path / "grey").mkdir()
    with pytest.raises(DataError, match="1 of 4 folders hold no picture, as grey"):
        ImageFolder(str(tmp_path)).read()
    with pytest.raises(ConfigError, match="root=nowhere: no such folder"):
        ImageFolder("nowhere").read()


def test_files_and_shards_of_the_same_pictures_get_the_same_scores(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path / "shards", num_samples=9)
    images, records = pictures_at([shards], range(9)), records_of(shards)
    rows = []
    for row, (record, image) in enumerate(zip(records, images, strict=True)):
        image.save(tmp_path / f"{row}.png")
        rows.append(record["json"] | {"file": f"{row}.png", "label": record["cls"]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table, model = ImageTable(str(tmp_path / "rows.jsonl")), embedder()
    of_files = Retrieval(table, "json.caption_en", relevance="json.colour")(model)
    of_shards = Retrieval(shards, "json.caption_en", relevance="json.colour")(model)
    assert of_files.metrics == of_shards.metrics
    assert of_files.details["shards"] == [table]
    classes = ClassesFromShards(table, name="json.colour", label="json.label")
    found = ZeroShot(table, classes, label="json.label", templates=["{c}"])(model)
    classes = ClassesFromShards(shards, name="json.colour", label="cls")
    assert found.metrics == ZeroShot(shards, classes, label="cls", templates=["{c}"])(model).metrics
    assert CaptionsFromShards(table, "json.caption_en").read().captions[0] == ["a red square"]


def test_one_folder_is_embedded_once_and_keeps_the_records_of_each_source(tmp_path: Path) -> None:
    source = write_folder(tmp_path)
    forwards = []
    model = embedder(between_batches=lambda: forwards.append(1))
    first = model.images(source)
    second = model.images(ImageSet(source.read().files, [{"key": str(row)} for row in range(4)]))
    assert len(forwards) == 2
    torch.testing.assert_close(first.features, second.features)
    assert [record["key"] for record in second.records] == ["0", "1", "2", "3"]
    assert first.records[0]["json"] == {"class": "blue"}


def test_missing_files_are_found_before_any_model_runs(tmp_path: Path) -> None:
    files = [ImageFile(str(tmp_path / f"{number}.png")) for number in range(3)]
    write_picture(tmp_path / "1.png")
    source = ImageSet(files, [{"key": "k", "cls": 0}] * 3)
    evaluator = NearestNeighbours(source, write_folder(tmp_path / "f"), label="cls", k=1, temperature=1.0)
    message = r"^2 of 3 pictures of 3 files are missing, the first would be .*0\.png; correct"
    with pytest.raises(DataError, match=message):
        evaluator.check()


def test_a_table_without_rows_is_named_without_a_key_of_another_command(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"^the table .*empty\.csv has no rows"):
        ImageTable(str(tmp_path / "empty.csv")).read()


def test_files_that_are_no_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    source = write_folder(tmp_path)
    for name in ("red/a.JPG", "red/b.png"):
        (tmp_path / name).write_bytes(b"no image")
    message = r"2 of 4 pictures of ImageFolder\(root=.*\) cannot be read; the first: .*a\.JPG"
    with pytest.raises(DataError, match=message):
        embedder().images(source)


def test_one_set_may_not_be_both_training_and_test_set(tmp_path: Path) -> None:
    source = write_folder(tmp_path)
    with pytest.raises(DataError, match=r"train and test both hold '.*d\.png'"):
        NearestNeighbours(source, ImageFolder(str(tmp_path)), label="cls", k=1, temperature=1.0).check()


def test_pictures_are_found_at_their_positions_in_data_sets_one_behind_the_other(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path / "shards", num_samples=6)
    source = write_folder(tmp_path / "folder")
    both = parts(source, [shards], source)
    every = [
        *pictures_at([source], range(4)),
        *pictures_at([shards], range(6)),
        *pictures_at([source], range(4)),
    ]
    for positions in ([0, 9, 4, 12, 4], range(14), [13]):
        found = [picture.convert("RGB").tobytes() for picture in pictures_at(both, positions)]
        assert found == [every[position].convert("RGB").tobytes() for position in positions]


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_finds_its_images_and_numbers(tmp_path: Path) -> None:
    rows = [["title", "year", "rating", "file"], ["a", "1", "1.5", "a.png"], ["2", "2", "", "b.png"]]
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name)
    table = ImageTable(str(write_csv(tmp_path / "t.csv", rows)))
    assert names(table) == ["a.png", "b.png"]
    assert [record["json"] for record in table.read().records] == [
        {"title": "a", "year": 1, "rating": 1.5, "file": "a.png"},
        {"title": "2", "year": 2, "rating": None, "file": "b.png"},
    ]
    elsewhere = ImageTable(str(tmp_path / "t.csv"), images=str(tmp_path), image="title")
    assert names(elsewhere) == ["a", "2"]


def test_rows_of_one_file_are_one_picture(tmp_path: Path) -> None:
    rows = [["file", "caption"], ["a.png", "one"], ["b.png", "two"], ["a.png", "three"]]
    table = ImageTable(str(write_csv(tmp_path / "t.csv", rows)))
    assert [record["json"]["caption"] for record in table.read().records] == [["one", "three"], "two"]


def test_parquet_names_files_but_does_not_hold_them(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"file": ["a.png"], "caption": ["a"]}), path)
    assert names(ImageTable(str(path))) == ["a.png"]
    pq.write_table(pa.table({"image": [b"bytes"], "caption": ["a"]}), path)
    message = "column image holds images, not their files; make shards of them by vlm shards pack"
    with pytest.raises(DataError, match=message):
        ImageTable(str(path)).read()


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([["file", "caption"], ["a.png", "a"], ["b.png"]], {}, "row 2: the row has 1 cells, the table 2"),
        ([["file", "caption"], ["a.png", "a"]], {"image": "nothing"}, "image=nothing is no column of"),
        ([["file", "caption"], ["a.png", "a"], ["", "b"]], {}, "has a row with file='', which is no name"),
        ([["file", "caption"], ["a.png", "a"]], {"images": "nowhere"}, "images=nowhere: no such folder"),
    ],
)
def test_damaged_tables_are_refused(
    tmp_path: Path, rows: list[list[str]], arguments: dict[str, str], message: str
) -> None:
    path = str(write_csv(tmp_path / "t.csv", rows))
    with pytest.raises(VlmError, match=message):
        ImageTable(path, **{"image": "file", **arguments}).read()
    with pytest.raises(ConfigError, match=r"path=nothing\.csv: no such table"):
        ImageTable("nothing.csv").read()


def dumped(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def lines(path: Path, *content: str) -> str:
    path.write_text("\n".join(content) + "\n", encoding="utf-8")
    return str(path)


def test_coco_captions_stand_in_the_order_of_its_images(tmp_path: Path) -> None:
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (2, 1, 3)],
        "annotations": [
            {"image_id": 1, "caption": "one "},
            {"image_id": 2, "caption": "two"},
            {"image_id": 1, "caption": "an\nother"},
        ],
    }
    source = CocoImages(dumped(tmp_path / "c.json", content), str(tmp_path))
    assert captions(source) == {"2.jpg": ["two"], "1.jpg": ["one", "an other"]}
    assert source.read().files[0].path == str(tmp_path / "2.jpg")
    with pytest.raises(ConfigError, match=r"split=test: .*c\.json has no splits"):
        CocoImages(str(tmp_path / "c.json"), str(tmp_path), split="test").read()


def karpathy(*entries: Mapping[str, Any]) -> dict[str, Any]:
    return {"dataset": "coco", "images": list(entries)}


def test_a_split_of_karpathy_is_looked_for_in_all_folders(tmp_path: Path) -> None:
    said = [{"raw": "A cat.", "tokens": ["a", "cat"]}, {"raw": "Two\ncats "}]
    content = karpathy(
        {"filename": "a.jpg", "filepath": "val2014", "split": "test", "sentences": said},
        {"filename": "b.jpg", "split": "train", "sentences": said},
        {"filename": "c.jpg", "split": "test", "sentences": said},
    )
    write_picture(tmp_path / "other" / "c.jpg")
    (tmp_path / "coco").mkdir()
    path = dumped(tmp_path / "k.json", content)
    source = CocoImages(path, [str(tmp_path / "coco"), str(tmp_path / "other")], split="test")
    assert captions(source) == {key: ["A cat.", "Two cats"] for key in ("val2014/a.jpg", "c.jpg")}
    assert [file.path for file in source.read().files] == [
        f"{tmp_path}/coco/val2014/a.jpg",
        f"{tmp_path}/other/c.jpg",
    ]
    with pytest.raises(DataError, match=r"split=tset is not in .*; it has test, train"):
        CocoImages(path, str(tmp_path), split="tset").read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (karpathy({"filename": "a", "split": "test", "sentences": [{}]}), "entry 0 of images needs a list"),
        (karpathy({"filename": "a", "sentences": []}), "entry 0 of images needs texts filename and split"),
        ({"images": []}, "has no list 'annotations'"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": []}, "no picture has a caption"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CocoImages(dumped(tmp_path / "c.json", content), str(tmp_path)).read()


def test_lines_of_coco_cn_and_flickr30k_cn(tmp_path: Path) -> None:
    written = lines(
        tmp_path / "captions.txt",
        "COCO_val2014_000000000042#1\t一只 狗。",
        "1007129816.jpg#zhm#0 一个男人",
        "1007129816.jpg#zhm#1 戴帽子的人 ",
        "44 两只\u2028猫",
    )
    coco = "COCO_val2014_000000000042"
    assert captions(CaptionLines(written, str(tmp_path))) == {
        f"{coco}.jpg": ["一只 狗。"],
        "1007129816.jpg": ["一个男人", "戴帽子的人"],
        "44.jpg": ["两只\u2028猫"],
    }
    ids = lines(tmp_path / "ids.txt", "44", coco)
    assert list(captions(CaptionLines(written, str(tmp_path), ids=ids))) == ["44.jpg", f"{coco}.jpg"]
    ids = lines(tmp_path / "ids.txt", "44", "45")
    with pytest.raises(DataError, match=r"1 of 2 images of ids=.* have no caption .*, the first is 45\.jpg"):
        CaptionLines(written, str(tmp_path), ids=ids).read()
    with pytest.raises(DataError, match="line 2 is 'nothing'; expected <image>"):
        CaptionLines(lines(tmp_path / "c.txt", "1#0 a", "nothing"), str(tmp_path)).read()


def write_chinese_clip(root: Path, *texts: Mapping[str, Any], bad: str = "") -> ChineseClipImages:
    pictures = (image_bytes(COLOURS[name], size=(20, 20)) for name in COLOURS)
    rows = [
        f"{number}\t{base64.b64encode(picture).decode()}" for number, picture in enumerate(pictures, 1001)
    ]
    if bad:
        rows[1] = bad
    lines(root / "valid_imgs.tsv", *rows)
    lines(root / "valid_texts.jsonl", *(json.dumps(text) for text in texts))
    return ChineseClipImages(str(root), "valid")


def test_pictures_within_a_table_of_base64_are_read_where_they_stand(tmp_path: Path) -> None:
    source = write_chinese_clip(
        tmp_path,
        {"text_id": 7, "text": "红绿", "image_ids": [1001, 1002]},
        {"text_id": 8, "text": "绿", "image_ids": [1002]},
    )
    assert captions(source) == {"1001": ["红绿"], "1002": ["红绿", "绿"], "1003": []}
    assert source.read().records[1]["json"]["text_ids"] == [7, 8]
    corners = [picture.getpixel((0, 0)) for picture in pictures_at([source], range(3))]
    assert corners == list(COLOURS.values())
    embedded = embedder(num_workers=1).images(source).features
    of_files = embedder().images(write_folder(tmp_path / "f")).features  # blue, green, red, red
    torch.testing.assert_close(embedded, of_files[[3, 1, 0]])


@pytest.mark.parametrize(
    ("text", "bad", "message"),
    [
        ({"text": "t", "image_ids": [5]}, "", r"line 1 names the image 5, which .*imgs\.tsv does not have"),
        ({"text": " ", "image_ids": [1001]}, "", "line 1 has text=' '; expected a text"),
        ({"text": "t", "image_ids": 1001}, "", "line 1 has image_ids=1001; expected a list of image ids"),
        ({"text": "t", "image_ids": []}, "", "split=valid: no text of .* names an image"),
        (
            {"text": "t", "image_ids": [1001]},
            "1002 A",
            "line 2 is .*; expected an image id, a tab",
        ),
    ],
)
def test_other_tables_of_base64_are_refused(
    tmp_path: Path, text: dict[str, Any], bad: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_chinese_clip(tmp_path, text, bad=bad).read()


def test_what_is_no_base64_cannot_be_read(tmp_path: Path) -> None:
    source = write_chinese_clip(tmp_path, {"text": "t", "image_ids": [1001]}, bad="1002\t*not base64*")
    with pytest.raises(DataError, match=r"1 of 3 pictures of .* cannot be read; .*no base64 at byte"):
        embedder().images(source)


def test_a_language_of_crossmodal_3600(tmp_path: Path) -> None:
    entry = {"image/key": "000411001ff7dd4f", "image/locale": "en", "en": {"caption": ["A", "B"]}}
    path = lines(tmp_path / "captions.jsonl", json.dumps(entry | {"zh": {"caption": ["甲"]}}))
    assert captions(Xm3600Images(path, str(tmp_path), "en")) == {"000411001ff7dd4f": ["A", "B"]}
    assert names(Xm3600Images(path, str(tmp_path), "zh")) == ["000411001ff7dd4f.jpg"]
    with pytest.raises(DataError, match=r"line 1 \(000411001ff7dd4f\) has nothing in language=de; it has en"):
        Xm3600Images(path, str(tmp_path), "de").read()
    broken = lines(tmp_path / "b.jsonl", json.dumps(entry), '{"image/key": "b", "en": {"caption": "A"}}', "{")
    with pytest.raises(DataError, match=r"line 2 \(b\): caption of en is 'A', not a list of texts"):
        Xm3600Images(broken, str(tmp_path), "en").read()


def test_names_and_captions_of_xtd_stand_line_by_line(tmp_path: Path) -> None:
    pictures = lines(tmp_path / "test_image_names.txt", "COCO_train2014_1.jpg", "COCO_val2014_2.jpg")
    chinese = lines(tmp_path / "test_1kcaptions_zh.txt", "一只猫", "两只狗")
    source = XtdImages(pictures, chinese, str(tmp_path))
    assert captions(source) == {"COCO_train2014_1.jpg": ["一只猫"], "COCO_val2014_2.jpg": ["两只狗"]}
    short = lines(tmp_path / "short.txt", "一只猫")
    with pytest.raises(DataError, match=r"names=.* has 2 lines, captions=.* 1; each picture has"):
        XtdImages(pictures, short, str(tmp_path)).read()
