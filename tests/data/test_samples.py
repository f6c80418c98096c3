import io
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from small_shards import image_bytes, sample

from vlm.data.samples import (
    BrokenSampleError,
    decode_record,
    draw_caption,
    field_names,
    lookup,
    record_captions,
    sample_image,
)
from vlm.data.tar import RawSample


def raw(**members: bytes) -> RawSample:
    return RawSample("a.tar", "0", members)


def test_a_record_holds_key_and_text_members_decoded():
    array = np.array([200, 255], dtype=np.uint8).tobytes()
    record = decode_record(RawSample("a.tar", "000003", sample(3) | {"npy": array, "wnid": b" n01 \n"}))
    assert record == {
        "key": "000003",
        "txt": "caption 3",
        "cls": 3,
        "json": {"caption_en": "number 3", "caption_zh": ["第3号", "编号3"], "id": 3},
        "wnid": "n01",
    }


@pytest.mark.parametrize(
    ("array", "places"), [([0.0, 1.0, 1.0], [1, 2]), ([0, 0], []), ([0.5, 1.0], None), ([[0, 1]], None)]
)
def test_ones_of_an_array_are_the_classes_of_a_picture(array: list[Any], places: list[int] | None) -> None:
    file = io.BytesIO()
    np.save(file, np.array(array, np.float32))
    assert decode_record(raw(npy=file.getvalue())).get("npy") == places


@pytest.mark.parametrize("members", [{"json": b"{"}, {"cls": b"cat"}])
def test_text_that_cannot_be_parsed_is_a_broken_sample(members):
    with pytest.raises(BrokenSampleError, match="cannot be parsed"):
        decode_record(raw(**members))


def test_lookup_follows_dots_and_finds_nothing_quietly():
    record = {"txt": "a", "json": {"deep": {"er": 0}}}
    assert lookup(record, "json.deep.er") == 0
    assert [lookup(record, path) for path in ("cls", "json.no", "txt.no", "json.deep.er.no")] == [None] * 4


def test_empty_captions_and_absent_fields_do_not_count():
    record = {"txt": " ", "json": {"a": ["x", "", None, 3], "b": [], "c": "y "}}
    assert record_captions(record, ["txt", "json.a", "json.b", "json.c", "json.d"]) == [["x"], ["y"]]


def test_fields_are_equally_likely_then_their_captions():
    record = {"txt": "one", "json": {"many": ["a", "b", "c", "d"]}}
    rng = random.Random(0)
    drawn = Counter(draw_caption(record, ["txt", "json.many", "json.none"], rng=rng) for _ in range(8000))
    assert abs(drawn["one"] - 4000) < 200
    assert all(abs(drawn[caption] - 1000) < 150 for caption in "abcd")


def test_a_sample_without_caption_or_image_is_broken():
    with pytest.raises(BrokenSampleError, match=r"no caption in txt, json\.a"):
        draw_caption({"key": "0"}, ["txt", "json.a"], rng=random.Random(0))
    with pytest.raises(BrokenSampleError, match="no image"):
        sample_image(raw(txt=b"a"))
    with pytest.raises(BrokenSampleError, match="its png is unreadable"):
        sample_image(raw(png=b"no image"))


def test_any_of_the_usual_image_extensions_is_found():
    for extension, kind in (("jpg", "JPEG"), ("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")):
        assert sample_image(raw(**{extension: image_bytes((1, 2, 3), kind=kind)})).format == kind


def test_field_names_are_those_that_captions_accepts():
    record = decode_record(
        raw(txt=b"a", cls=b"1", json=json.dumps({"a": {"b": "x"}, "n": 1, "l": ["y"]}).encode())
    )
    assert field_names(record) == ["json.l", "json.a.b"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"a": NaN', "nul"])
def test_json_meant_to_break_the_parser_is_a_broken_sample(text):
    with pytest.raises(BrokenSampleError, match="cannot be parsed") as caught:
        decode_record(raw(json=text.encode()))
    assert caught.value.cause == "unreadable_text"


def test_strange_json_is_no_caption_and_no_error():
    nested = '{"a": ' * 300 + '"deep"' + "}" * 300
    values = f'{{"a": NaN, "b": Infinity, "c": [1, null, {{}}], "d": "half \\ud83d", "e": {nested}}}'
    record = decode_record(raw(json=values.encode()))
    assert record_captions(record, [f"json.{name}" for name in "abcde"]) == []
    assert field_names(record) == []
    assert record_captions(decode_record(raw(json=b'{"a": "\\ud83d\\ude00"}')), ["json.a"]) == [["😀"]]
