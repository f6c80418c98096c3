import json
from pathlib import Path

import pytest

from vlm.data.tools.columns import choose_columns
from vlm.data.tools.tables import open_table
from vlm.errors import DataError


def chosen(folder: Path, rows: list[dict], *, image=None, captions=None) -> tuple[str, tuple[str, ...], str]:
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = open_table(folder / "t.jsonl", separator=None)
    columns = choose_columns(table, image=image, captions=captions, root=folder)
    return columns.image, columns.captions, columns.fields


@pytest.mark.parametrize(
    ("row", "image", "captions", "fields"),
    [
        ({"filepath": "a.jpg", "title": "x"}, "filepath", ("title",), "txt"),
        (
            {"title": "a.jpg", "caption": "a cat", "file": "a.gif", "image": "b.png"},
            "image",
            ("caption",),
            "txt",
        ),
        ({"caption": "b.jpg", "path": "a.jpg", "text": "a cat"}, "path", ("caption",), "txt"),
        (
            {"image": "a.jpg", "caption_zh": "猫", "caption_en": "cat", "text": "z", "url": "http://x/a.jpg"},
            "image",
            ("caption_zh", "caption_en"),
            "'[json.caption_zh, json.caption_en]'",
        ),
        ({"image": "a.jpg", "captions": ["a cat", "a dog"]}, "image", ("captions",), "json.captions"),
        ({"bild": "a.JPEG", "id": "cat 1", "worte": "eine rote Katze"}, "bild", ("worte",), "txt"),
        ({"图片": "a.jpg", "描述": "红色的猫"}, "图片", ("描述",), "txt"),
        ({"image": "a.jpg", "x": "一只猫", "page": "https://a/b c"}, "image", ("x",), "txt"),
    ],
)
def test_columns_are_found_by_name_and_content(tmp_path: Path, row, image, captions, fields) -> None:
    assert chosen(tmp_path, [row] * 3) == (image, captions, fields)


def test_files_without_extension_are_images_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "0001").touch()
    assert chosen(tmp_path, [{"name": "0001", "text": "a cat"}])[0] == "name"


def test_columns_that_are_named_are_taken(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "thumb": "b.jpg", "text": "a cat", "meta": {"title": "a dog"}}]
    assert chosen(tmp_path, rows, image="thumb", captions=["meta.title"])[:2] == ("thumb", ("meta.title",))


@pytest.mark.parametrize(
    ("row", "image", "captions", "message"),
    [
        ({"url": "http://x/a.jpg", "text": "a cat"}, None, None, "url holds addresses: download them first"),
        ({"id": 1, "text": "a cat"}, None, None, r"no column of .* holds paths .*it has id, text"),
        ({"image": "a.jpg", "id": 7}, None, None, r"no column of captions \(there is image, id\)"),
        ({"image": "a.jpg", "text": "x"}, "img", None, r"image=img is no column of .*; it has image, text"),
        ({"image": "a.jpg", "text": "x"}, None, ["title"], r"caption=title is no column"),
        ({"image": "a.jpg", "a.b": "x"}, None, "a.b", "a dot leads into nested json"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, row, image, captions, message) -> None:
    with pytest.raises(DataError, match=message):
        chosen(tmp_path, [row] * 3, image=image, captions=captions)


def test_a_folder_without_captions_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match=r"has no \.txt or \.json beside its images"):
        choose_columns(open_table(tmp_path, separator=None), image=None, captions=None, root=tmp_path)
