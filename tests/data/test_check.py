import json
from pathlib import Path

import pytest
from small_shards import image_bytes, sample, write_shards, write_tar

from vlm.data.shards import open_shards
from vlm.data.tokenizers import trained_bpe
from vlm.data.tools.check import SAME_IMAGE, SAME_KEY, TOO_LONG, Check, Findings
from vlm.data.tools.shard_scan import (
    CUT_SHORT,
    NO_CAPTION,
    NO_IMAGE,
    UNREADABLE_IMAGE,
    UNREADABLE_SHARD,
    WRONG_INDEX,
)
from vlm.errors import DataError


def check(folder: Path, **changes) -> Findings:
    values = {
        "shards": f"{folder}/*.tar*",
        "captions": "txt",
        "tokenizer_path": None,
        "decode": True,
        "out": str(folder / "out.json"),
        "workers": 1,
    }
    return Check(**{**values, **changes}).run()


def counted(findings: Findings) -> dict[str, int]:
    return {kind: count for kind, count in findings.counts.items() if count}


def test_whole_shards_have_no_findings(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 4])
    findings = check(tmp_path, captions=["json.caption_en", "json.caption_zh"])
    assert counted(findings) == {}
    assert (findings.shards, findings.samples, findings.errors) == (2, 7, 0)
    assert findings.members == {"png": 7, "txt": 7, "json": 7, "cls": 7}
    assert findings.fields == {"json.caption_en": 7, "json.caption_zh": 7}
    assert findings.size == sum(len(data) for n in range(7) for data in sample(n).values())
    assert json.loads((tmp_path / "out.json").read_text())["samples"] == 7


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_wrong_with_samples_is_counted_and_named(tmp_path: Path, workers: int) -> None:
    whole = sample(0)["png"]
    change = {
        "000001": {"txt": b"no image"},
        "000003": {"png": whole[:40], "txt": b"cut"},
        "000004": {"png": b"", "txt": b"empty"},
        "000005": {"jpg": image_bytes((9, 9, 9), size=(99, 99), kind="JPEG")[:-60], "txt": b"half"},
        "000007": {"png": sample(7)["png"], "txt": b" \n"},
        "000008": {"png": sample(8)["png"], "cls": b"3"},
        "000009": {"png": sample(9)["png"], "json": b"{", "txt": b"json"},
        "000010": {"png": whole, "txt": b"the image of 0"},
    }
    write_shards(tmp_path, [6, 6], change=change)
    open_shards(f"{tmp_path}/*.tar", key="k")
    findings = check(tmp_path, workers=workers)
    assert counted(findings) == {NO_IMAGE: 1, UNREADABLE_IMAGE: 3, NO_CAPTION: 3, SAME_IMAGE: 1}
    assert findings.errors == 7
    assert findings.fields == {"txt": 9}
    first, second = tmp_path / "00000.tar", tmp_path / "00001.tar"
    assert findings.named[NO_IMAGE] == [f"{first}/000001 has txt"]
    assert findings.named[SAME_IMAGE] == [f"{second}/000010 has that of {first}/000000"]
    assert [text.partition(": ")[0] for text in findings.named[UNREADABLE_IMAGE]] == [
        f"{first}/00000{n}" for n in (3, 4, 5)
    ]
    assert findings.named[NO_CAPTION][:2] == [
        f"{second}/000007 is empty in txt",
        f"{second}/000008 has no txt, but no other text",
    ]
    # Headers alone do not tell that pixels are missing.
    assert counted(check(tmp_path, decode=False))[UNREADABLE_IMAGE] == 2


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    samples = {"a": sample(0), "b": sample(1)}
    write_tar(tmp_path / "0.tar", samples)
    write_tar(tmp_path / "1.tar", {"b": sample(2), "c": sample(3)})
    findings = check(tmp_path)
    assert counted(findings) == {SAME_KEY: 1}
    assert findings.named[SAME_KEY] == [f"{tmp_path}/1.tar/b has that of {tmp_path}/0.tar/b"]


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_tar_that_is_cut_anywhere_is_noticed(tmp_path: Path, cut: int) -> None:
    write_shards(tmp_path, [4, 4])
    open_shards(f"{tmp_path}/*.tar", key="k")
    path = tmp_path / "00001.tar"
    end = 4 * 4 * 1024  # four members, each a header and a block
    path.write_bytes(path.read_bytes()[: end * cut // 8 // 512 * 512])
    found = counted(check(tmp_path))
    assert found.keys() & {CUT_SHORT, UNREADABLE_SHARD}
    assert cut == 7 or WRONG_INDEX in found  # of the last sample something is there


def test_a_tar_without_its_end_is_noticed(tmp_path: Path) -> None:
    write_shards(tmp_path, [4])
    path = tmp_path / "00000.tar"
    path.write_bytes(path.read_bytes()[: 4 * 4 * 1024])
    assert counted(check(tmp_path)) == {CUT_SHORT: 1}


def test_shards_that_cannot_be_read_do_not_stop_it(tmp_path: Path) -> None:
    write_shards(tmp_path, [4])
    write_shards(tmp_path / "z", [4], suffix="tar.gz")
    path = tmp_path / "00001.tar.gz"
    path.write_bytes((tmp_path / "z/00000.tar.gz").read_bytes()[:-200])
    (tmp_path / "00002.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "00003.tar").touch()
    findings = check(tmp_path)
    assert counted(findings)[UNREADABLE_SHARD] == 2
    assert counted(findings)[CUT_SHORT] == 1
    assert findings.samples >= 4


def test_captions_are_measured_in_characters_or_tokens(tmp_path: Path) -> None:
    captions = ["a", "red square " * 3, "红色的正方形", "red square " * 40]
    write_tar(tmp_path / "0.tar", {str(n): {**sample(n), "txt": c.encode()} for n, c in enumerate(captions)})
    lengths = sorted(len(caption.strip()) for caption in captions)
    findings = check(tmp_path)
    assert findings.lengths == {"median": lengths[2], "99 %": lengths[3], "longest": lengths[3]}
    assert (findings.unit, TOO_LONG in findings.counts) == ("characters", False)

    tokenizer = trained_bpe(captions, vocab_size=300, context_length=10)
    tokenizer.save(tmp_path / "tokenizer.json")
    long = trained_bpe(captions, vocab_size=300, context_length=10_000)
    tokens = [len(long.encode(caption)) for caption in captions]
    assert tokenizer.lengths(captions) == tokens
    findings = check(tmp_path, tokenizer_path=str(tmp_path / "tokenizer.json"))
    assert (findings.unit, findings.context_length) == ("tokens", 10)
    assert findings.lengths["longest"] == max(tokens)
    assert (
        findings.counts[TOO_LONG]
        == sum(count > 10 for count in tokens)
        == tokenizer.count_truncated(captions)
    )


def test_what_does_not_exist_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shards=.* matches no file"):
        check(tmp_path)
    write_shards(tmp_path, [1])
    with pytest.raises(DataError, match="is no tokenizer file"):
        check(tmp_path, tokenizer_path=str(tmp_path / "none.json"))


def test_a_wrong_field_names_those_that_exist(tmp_path: Path) -> None:
    write_shards(tmp_path, [1])
    (text,) = check(tmp_path, captions="json.caption_fr").named[NO_CAPTION]
    assert text.endswith("has no json.caption_fr, but txt, json.caption_en, json.caption_zh")
