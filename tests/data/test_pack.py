import json
import logging
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_tables import contents, expected_sample, pack, picture, write_table
from small_shards import image_bytes

from vlm.data.shards import ShardCursor, open_shards
from vlm.data.tools.pack import Packed
from vlm.errors import ConfigError, DataError


def read_samples(out: Path) -> dict[str, dict[str, bytes]]:
    shards = open_shards(f"{out}/*.tar", key="k")
    cursor = ShardCursor(shards, None)
    samples = [cursor.read(*shards.locate(row)) for row in range(shards.num_samples)]
    return {sample.key: sample.members for sample in samples}


def test_every_row_is_a_sample_with_its_file_as_it_was(tmp_path: Path) -> None:
    packed = pack(write_table(tmp_path, 25), tmp_path / "out").run()
    assert packed == Packed(25, 3, 0, 25, "'[json.title, json.title_zh]'")
    assert read_samples(tmp_path / "out") == {f"{n:09d}": expected_sample(n) for n in range(25)}
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {
        "00000.tar": 10,
        "00001.tar": 10,
        "00002.tar": 5,
    }


@pytest.mark.parametrize("workers", [2, 5])
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    table = write_table(tmp_path, 73, broken={5: b"nothing", 71: None})
    pack(table, tmp_path / "one").run()
    pack(table, tmp_path / "several", workers=workers).run()
    assert contents(tmp_path / "several") == contents(tmp_path / "one")


def test_shards_are_bounded_by_bytes(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w") as file:
        file.write("image,text\n")
        for number in range(12):
            file.write(f"{number}.jpg,some text\n")
            (tmp_path / f"{number}.jpg").write_bytes(image_bytes((1, 2, 3), kind="JPEG") + bytes(300_000))
    pack(tmp_path / "t.csv", tmp_path / "out", max_mb=1).run()
    assert [path.stat().st_size // 1000 for path in sorted((tmp_path / "out").glob("*.tar"))] == [921] * 4


def test_what_is_no_readable_image_is_counted_and_named(tmp_path: Path) -> None:
    _, webp = picture(2)
    broken = {0: None, 3: b"", 6: b"<html>", 9: b"GIF89a", 2: webp[:-9], 12: b"\0" * 40}
    table = write_table(tmp_path, 30, broken=broken)
    with table.open("a") as file:
        file.write(
            "pictures/1.png,,\npictures/1.png,three,cells,four\n,no image,zh\nhttp://a/b.jpg,address,zh\n"
        )
        file.write("pictures,folder,zh\n")
    packed = pack(table, tmp_path / "out", max_skipped=0.5).run()
    assert packed.skipped == 11
    assert packed.samples == 24
    lines = (tmp_path / "out/skipped.tsv").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        ["row", "image", "reason"],
        ["0", "pictures/0.jpg", "there is no such file"],
        ["2", "pictures/2.webp", "the image is cut short"],
        ["3", "pictures/3.jpg", "the file is empty"],
        ["6", "pictures/6.jpg", "the file is no JPEG, PNG or WebP image"],
        ["9", "pictures/9.jpg", "GIF is no format of shards; convert it to JPEG, PNG or WebP"],
        ["12", "pictures/12.jpg", "the file is no JPEG, PNG or WebP image"],
        ["30", "pictures/1.png", "no caption in title, title_zh"],
        ["31", "pictures/1.png", "the row has 4 cells, the table 3 columns"],
        ["32", "", "no image is named"],
        ["33", "http://a/b.jpg", "there is no such file"],
        ["34", "pictures", "the file cannot be read: Is a directory"],
    ]


def test_decoding_finds_what_the_header_hides(tmp_path: Path) -> None:
    big = image_bytes((1, 2, 3), size=(64, 64), kind="JPEG")
    table = write_table(tmp_path, 12, broken={3: big[: len(big) // 2]})
    assert pack(table, tmp_path / "header").run().samples == 12
    assert pack(table, tmp_path / "decode", verify="decode").run().samples == 11
    assert "cannot be decoded" in (tmp_path / "decode/skipped.tsv").read_text()


def test_missing_images_stop_it_before_anything_is_written(tmp_path: Path) -> None:
    table = write_table(tmp_path, 10)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(
        DataError, match=r"10 of 10 images are missing, as .*elsewhere/pictures/0\.jpg.*root="
    ):
        pack(table, tmp_path / "out", root=str(elsewhere)).run()
    assert not contents(tmp_path / "out")


def test_too_many_unreadable_images_stop_it_and_more_can_be_allowed(tmp_path: Path) -> None:
    table = write_table(tmp_path, 40, broken=dict.fromkeys(range(10, 16), b"no image"))
    with pytest.raises(DataError, match=r"6 of 40 rows .*, as row 10 .*skipped\.tsv.*max_skipped=0\.1"):
        pack(table, tmp_path / "out").run()
    assert len((tmp_path / "out/skipped.tsv").read_text().splitlines()) == 7
    assert pack(table, tmp_path / "out", max_skipped=0.2).run() == Packed(
        34, 4, 6, 20, "'[json.title, json.title_zh]'"
    )
    pack(table, tmp_path / "whole", max_skipped=0.2).run()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    table = write_table(tmp_path, 25)
    pack(table, tmp_path / "out").run()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert pack(table, tmp_path / "out").run() == Packed(25, 3, 0, 0, "'[json.title, json.title_zh]'")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == times


@pytest.mark.parametrize("damage", ["remove", "cut", "index", "record"])
def test_a_shard_that_is_not_whole_is_written_again_and_no_other(tmp_path: Path, damage: str) -> None:
    table = write_table(tmp_path, 25)
    out = tmp_path / "out"
    pack(table, out).run()
    before, times = contents(out), {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    shard = out / "00001.tar"
    if damage == "remove":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1024])
    elif damage == "index":
        (out / "00001.index.parquet").unlink()
    else:
        (out / ".pack/00001.json").write_text("{")
    (out / "00001.tar.partial").write_bytes(b"what a run that was killed left")
    (out / ".00001.index.parquet.0f.partial").write_bytes(b"and this")
    assert pack(table, out).run().new_samples == 10
    assert contents(out) == before
    for name in ("00000.tar", "00002.tar"):
        assert (out / name).stat().st_mtime_ns == times[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_samples": 9}, r"was begun with max_samples=10 \(asked: 9\)"),
        ({"caption": "title"}, r"caption=\['title', 'title_zh'\] \(asked: \['title'\]\)"),
        ({"root": "/"}, r"root="),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    table = write_table(tmp_path, 12)
    pack(table, tmp_path / "out").run()
    with pytest.raises(DataError, match=message):
        pack(table, tmp_path / "out", **changes).run()


def test_another_table_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, 12)
    pack(table, tmp_path / "out").run()
    table.write_text(table.read_text().replace("picture 3", "picture 4"))
    with pytest.raises(DataError, match="holds shards of another input, or the input has changed"):
        pack(table, tmp_path / "out").run()


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, 3)
    with pytest.raises(DataError, match=r"out=.* has pictures in it"):
        pack(table, tmp_path).run()


def test_a_folder_with_captions_beside_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    for number, stem in enumerate(["a", "b/c", "b/d.e"]):
        extension, data = picture(number)
        (folder / f"{stem}.{extension}").write_bytes(data)
        (folder / f"{stem}.txt").write_text(f"caption {number}\n")
    (folder / "a.json").write_text('{"id": 7, "image": "other"}')
    packed = pack(folder, tmp_path / "out").run()
    assert (packed.samples, packed.captions) == (3, "txt")
    samples = read_samples(tmp_path / "out")
    assert [sample["txt"] for sample in samples.values()] == [b"caption 0", b"caption 1", b"caption 2"]
    assert [json.loads(sample["json"]) for sample in samples.values()] == [
        {"image": "a.jpg", "txt": "caption 0", "id": 7},
        {"image": "b/c.png", "txt": "caption 1"},
        {"image": "b/d.e.webp", "txt": "caption 2"},
    ]
    assert [sample[picture(n)[0]] for n, sample in enumerate(samples.values())] == [
        picture(n)[1] for n in range(3)
    ]


@pytest.mark.parametrize("edited", ["a.png", "a.txt", "a.json"])
def test_a_folder_in_which_a_file_was_edited_is_another_input(tmp_path: Path, edited: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in (("a.png", picture(1)[1]), ("a.txt", b"house 17"), ("a.json", b'{"id": 17}')):
        (folder / name).write_bytes(data)
    pack(folder, tmp_path / "out").run()
    assert pack(folder, tmp_path / "out").run().new_samples == 0

    before = (folder / edited).stat()
    (folder / edited).write_bytes((folder / edited).read_bytes().replace(b"17", b"18"))  # as long as it was
    os.utime(folder / edited, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DataError, match="holds shards of another input, or the input has changed"):
        pack(folder, tmp_path / "out").run()


@pytest.mark.parametrize("workers", [1, 2])
def test_images_within_parquet(tmp_path: Path, workers: int) -> None:
    images = [picture(number)[1] for number in range(30)]
    structs = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)]
    captions = [[f"one {n}", f"two {n}"] for n in range(30)]
    pq.write_table(
        pa.table({"image": structs, "captions": captions}), tmp_path / "t.parquet", row_group_size=7
    )
    packed = pack(tmp_path / "t.parquet", tmp_path / "out", workers=workers).run()
    assert packed == Packed(30, 3, 0, 30, "json.captions")
    samples = list(read_samples(tmp_path / "out").values())
    assert [sample[picture(n)[0]] for n, sample in enumerate(samples)] == images
    assert [json.loads(sample["json"]) for sample in samples] == [{"captions": pair} for pair in captions]
    assert samples[3]["txt"] == b"one 3"


def test_it_says_which_columns_it_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlm"):
        pack(write_table(tmp_path, 3), tmp_path / "out").run()
    assert "table.csv: separator comma, columns filepath, title, title_zh" in caplog.text
    assert "image=filepath caption=[title,title_zh]" in caplog.text


def test_two_runs_into_one_folder_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("vlm.data.tools.pack._LOCK_SECONDS", 0.1)
    table = write_table(tmp_path, 3)
    pack(table, tmp_path / "out").run()
    with FileLock(tmp_path / "out/.pack/lock"), pytest.raises(DataError, match="another process is packing"):
        pack(table, tmp_path / "out").run()


def test_a_tar_of_ours_is_a_tar(tmp_path: Path) -> None:
    pack(write_table(tmp_path, 3), tmp_path / "out").run()
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert tar.getnames()[:3] == ["000000000.jpg", "000000000.txt", "000000000.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers=0"),
        ({"max_samples": 0}, "max_samples=0"),
        ({"max_mb": 0}, "max_mb=0"),
        ({"max_skipped": 1.0}, "max_skipped=1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pack(tmp_path / "t.csv", tmp_path / "out", **changes)
