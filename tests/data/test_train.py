import subprocess
import sys

import pytest
from small_shards import sample, tokenize, train_data, write_shards

from vlm.data import Source
from vlm.data.shards import ShardSet
from vlm.errors import ConfigError, DataError


def mixed(share):
    return {"mix": {"extra": Source(shards="b.tar", captions="txt", share=share)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 0}, "data.global_batch_size=0 must be a whole number of at least 1"),
        ({"stream_groups": 0}, "data.stream_groups=0 must"),
        ({"streams_per_group": 0}, "data.streams_per_group=0 must"),
        ({"shuffle_samples": 0}, "data.shuffle_samples=0 must"),
        ({"num_workers": -1}, "data.num_workers=-1 must be a whole number of at least 0"),
        ({"seed": -1}, "data.seed=-1 must"),
        ({"num_workers": 3}, "data.num_workers=3 does not divide data.stream_groups=2; use 0, 1 or 2$"),
        (
            {"streams_per_group": 3},
            "data.streams_per_group=3 does not divide data.global_batch_size=8; use 1, 2, 4 or 8$",
        ),
        (mixed(None), "data.mix.extra.share=None must be a share of every batch between 0 and 1"),
        (mixed(1.5), "data.mix.extra.share=1.5 must be"),
        (
            mixed(0.3),
            "data.mix.extra.share=0.3 of data.global_batch_size=8 is 2.4 samples.*; use a multiple of 0.5, ",
        ),
        (
            {"global_batch_size": 16, **mixed(0.3)},
            "data.streams_per_group=4; use a multiple of 0.25, or lower",
        ),
        (
            {
                "mix": {
                    "a": Source(shards="a.tar", captions="txt", share=0.5),
                    "b": Source(shards="b.tar", captions="txt", share=0.5),
                }
            },
            "the shares of data.mix add up to 1 and leave nothing for data.train",
        ),
        ({"train": Source(shards="a.tar", captions="txt", share=0.5)}, "data.train.share must be null"),
    ],
)
def test_a_wrong_number_names_its_key_and_what_works(changes, message):
    with pytest.raises(ConfigError, match=message):
        train_data("a.tar", **changes)


def test_ranks_that_do_not_divide_the_streams_are_refused(tmp_path):
    data = train_data(write_shards(tmp_path, [8]))
    with pytest.raises(
        ConfigError, match=r"3 ranks do not divide data.streams_per_group=4; run 1, 2 or 4 ranks"
    ):
        data.check_world_size(3)
    with pytest.raises(ConfigError, match="8 ranks do not divide"):
        data.open().loader(tokenize, start_step=0, stop_step=1, rank=0, world_size=8)


def test_fewer_samples_than_a_batch_are_refused_with_both_numbers(tmp_path):
    with pytest.raises(
        DataError, match=r"data.train.shards hold 7 samples, fewer than the 8 .*global_batch_size=8"
    ):
        train_data(write_shards(tmp_path, [3, 4])).open()


def test_shards_without_captions_are_refused_with_what_they_have(tmp_path):
    pattern = write_shards(tmp_path, [9])
    data = train_data(pattern, train=Source(shards=pattern, captions=["caption", "json.caption_fr"]))
    with pytest.raises(DataError) as caught:
        data.open()
    assert str(caught.value) == (
        f"none of the first samples of {tmp_path}/00000.tar has caption or json.caption_fr "
        "(data.train.captions) beside an image (jpg, png, jpeg, webp); "
        "they have: png, txt, json, cls, json.caption_en, json.caption_zh"
    )


def test_shards_without_images_are_refused(tmp_path):
    change = {f"{n:06d}": {"mp4": b"", "txt": b"a"} for n in range(20)}
    with pytest.raises(DataError, match=r"they have: mp4, txt$"):
        train_data(write_shards(tmp_path, [20], change=change)).open()


def test_a_first_sample_without_caption_is_no_reason_to_refuse(tmp_path):
    change = {"000000": {"png": sample(0)["png"]}, "000001": {"json": b"{"}}
    assert train_data(write_shards(tmp_path, [9], change=change)).open().num_samples == 9


def test_a_pattern_of_a_further_source_names_its_own_key(tmp_path):
    mix = {"extra": Source(shards=f"{tmp_path}/absent-*.tar", captions="txt", share=0.5)}
    with pytest.raises(DataError, match=r"^data\.mix\.extra\.shards="):
        train_data(write_shards(tmp_path, [9]), mix=mix).open()


def test_captions_are_all_captions_in_stored_order(tmp_path):
    pattern = write_shards(tmp_path, [5, 4], change={"000001": {"json": b"{"}, "000002": {"cls": b"1"}})
    data = train_data(pattern, train=Source(shards=pattern, captions=["txt", "json.caption_zh"]))
    numbers = [0, 3, 4, 5, 6, 7, 8]
    expected = [text for n in numbers for text in (f"caption {n}", f"第{n}号", f"编号{n}")]
    assert list(data.open().captions(1000)) == expected
    assert list(data.open().captions(limit=4)) == expected[:4]


def test_a_limit_on_captions_is_shared_among_sources(tmp_path):
    main = write_shards(tmp_path / "main", [20])
    extra = Source(shards=write_shards(tmp_path / "extra", [20]), captions="json.caption_en", share=0.5)
    captions = list(train_data(main, mix={"extra": extra}).open().captions(limit=6))
    assert [caption.split()[0] for caption in captions] == ["caption"] * 3 + ["number"] * 3


def test_importing_the_data_layer_is_light():
    heavy = ("transformers", "pyarrow", "fsspec", "lightning", "timm")
    code = f"import sys, vlm.data; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_another_data_set_of_the_same_names_and_counts_is_noticed(tmp_path):
    pattern = write_shards(tmp_path / "a", [8, 8])
    stored = train_data(pattern).open().fingerprint
    moved = tmp_path / "elsewhere"
    (tmp_path / "a").rename(moved)
    opened = train_data(f"{moved}/*.tar").open()
    before, now = opened.beside(stored)["data.train"]
    assert before == now == stored["data.train"]

    other = {"000003": sample(3) | {"txt": b"x" * 20_000}}
    replaced = train_data(write_shards(tmp_path / "b", [8, 8], change=other)).open()
    before, now = replaced.beside(stored)["data.train"]
    assert before != now
    assert (before["sha256"], before["samples"]) == (now["sha256"], now["samples"])
    assert now["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").glob("*.tar"))


def test_sizes_are_compared_only_where_both_sides_know_them(tmp_path):
    opened = train_data(write_shards(tmp_path, [8])).open()
    without = {name: opened.fingerprint["data.train"][name] for name in ("shards", "samples", "sha256")}
    assert opened.beside({"data.train": without})["data.train"] == (without, without)
    for stored in ({}, {"data.train": {}}, {"data.train": None}, {"data.train": without | {"samples": 9}}):
        before, now = opened.beside(stored)["data.train"]
        assert before != now


def test_sizes_of_shards_in_a_store_are_not_asked_for():
    shards = ShardSet(("a/00000.tar", "s3://b/00001.tar"), (1, 1))
    assert shards.fingerprint.keys() == {"shards", "samples", "sha256"}
