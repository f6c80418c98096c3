"""What becomes of samples and shards that are broken: counted substitutes, the same on every run."""

import json
import pickle
import traceback

import pytest
from servers import serving_files
from small_shards import PREPROCESS, image_bytes, sample, tokenize, train_data, write_shards, write_tar

from vlm.broken import Cause
from vlm.data import Source, eval_loader, open_shards, read_records, shards
from vlm.data.index import shard_sizes
from vlm.data.shards import DamagedShardError, MissingShardError, ShardCursor
from vlm.data.tar import open_shard
from vlm.errors import DataError

SIZES = [20, 20, 24, 16]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def epoch(opened, *, start=0, world_size=1):
    """Per step the rows of all ranks, sorted, and the broken samples they replace."""
    ranks = [
        list(opened.loader(tokenize, start_step=start, stop_step=10, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    return [
        (
            sorted(row for part in parts for row in zip(part["key"], part["image"].tolist(), strict=True)),
            sorted(broken for part in parts for broken in part["broken"]),
        )
        for parts in zip(*ranks, strict=True)
    ]


def broken_of(batches):
    return [broken for _, of_batch in batches for broken in of_batch]


BROKEN = {
    "000003": ({"txt": b"a"}, Cause.NO_IMAGE, "it has no image"),
    "000014": ({**sample(14), "png": b"no image"}, Cause.UNREADABLE_IMAGE, "its png is unreadable"),
    "000025": (
        {**sample(25), "png": image_bytes((1, 2, 3))[:50]},
        Cause.UNREADABLE_IMAGE,
        "truncated",
    ),
    "000036": (
        {**sample(36), "png": image_bytes(0, mode="1", size=(12_000, 12_000))},
        Cause.OVERSIZED_IMAGE,
        "decompression bomb",
    ),
    "000047": ({"png": sample(47)["png"]}, Cause.NO_CAPTION, "it has no caption in txt"),
    "000058": ({**sample(58), "txt": b" \n"}, Cause.EMPTY_CAPTION, "its caption is empty"),
    "000069": ({**sample(69), "json": b"[" * 100_000}, Cause.UNREADABLE_TEXT, "its json cannot be parsed"),
    "000071": ({**sample(71), "txt": b"\xff\xfe"}, Cause.NO_CAPTION, "it has no caption"),
}


def test_every_cause_is_told_apart(tmp_path):
    change = {key: members for key, (members, *_) in BROKEN.items()}
    pattern = write_shards(tmp_path, SIZES, change=change)
    source = Source(shards=pattern, captions=["txt", "json.none"])
    found = broken_of(epoch(train_data(pattern, train=source).open()))
    assert {broken.key: broken.cause for broken in found} == {
        key: cause for key, (_, cause, _) in BROKEN.items()
    }
    for broken in found:
        assert BROKEN[broken.key][2] in broken.reason
        assert broken.shard.startswith(str(tmp_path))


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def damaged(tmp_path, damage, *, indexed=True, suffix="tar"):
    """A training set, one of whose shards is damaged after it was indexed."""
    pattern = write_shards(tmp_path, SIZES, suffix=suffix)
    open_shards(pattern, key="k")
    if not indexed:
        for path in tmp_path.glob("*.parquet"):
            path.unlink()
    damage(tmp_path / f"00002.{suffix}")
    return pattern


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("indexed", [True, False])
def test_samples_behind_a_cut_are_replaced_the_same_on_any_ranks_and_workers(tmp_path, suffix, indexed):
    pattern = damaged(tmp_path, lambda path: cut(path, 0.5), suffix=suffix, indexed=indexed)
    reference = epoch(train_data(pattern).open())
    found = broken_of(reference)
    assert {broken.cause for broken in found} == {"damaged_shard"}
    assert {broken.shard for broken in found} == {f"{tmp_path}/00002.{suffix}"}
    assert len(found) == len({broken.key for broken in found}) > 8
    assert all("ends" in broken.reason or "ended" in broken.reason for broken in found)
    served = [key for rows, _ in reference for key, _ in rows]
    lost = {f"{40 + int(broken.key.split()[1]):06d}" for broken in found}
    assert {key.rsplit("/", 1)[1] for key in served} == {f"{n:06d}" for n in range(80)} - lost
    for num_workers, world_size in [(2, 1), (0, 2), (2, 4)]:
        opened = train_data(pattern, num_workers=num_workers).open()
        assert epoch(opened, world_size=world_size) == reference
    for start in (1, 5, 8):
        assert epoch(train_data(pattern).open(), start=start) == reference[start:]


def test_a_damaged_header_costs_the_samples_that_it_hides(tmp_path):
    def damage(path):
        data = bytearray(path.read_bytes())
        place = data.index(b"000050.png")
        data[place : place + 20] = b"\xff" * 20
        path.write_bytes(data)

    pattern = damaged(tmp_path, damage)
    assert [broken.key for broken in broken_of(epoch(train_data(pattern).open()))] == ["sample 10"]
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    without_offsets = sorted(
        broken_of(epoch(train_data(pattern).open())), key=lambda broken: int(broken.key.split()[1])
    )
    assert [broken.key for broken in without_offsets] == [f"sample {n}" for n in range(10, 24)]


def test_damage_within_a_sample_does_not_reach_the_next(tmp_path):
    """Whether the next is read on to or sought."""

    def damage(path):
        data = bytearray(path.read_bytes())
        place = data.index(b"000050.json")
        data[place : place + 20] = b"\xff" * 20
        path.write_bytes(data)

    pattern = damaged(tmp_path, damage)
    reference = epoch(train_data(pattern).open())
    assert broken_of(reference) == []
    for start in range(1, 10):
        assert epoch(train_data(pattern).open(), start=start) == reference[start:]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_lost_shard_is_not_opened_for_each_of_its_samples(tmp_path, monkeypatch, suffix):
    pattern = damaged(tmp_path, lambda path: cut(path, 0.3), suffix=suffix)
    cursor = ShardCursor(open_shards(pattern, key="k"), None)
    (tmp_path / f"00001.{suffix}").unlink()
    opened = []
    monkeypatch.setattr(shards, "open_shard", lambda url, **o: opened.append(url) or open_shard(url, **o))
    causes = [getattr(cursor.try_read(shard, row), "cause", None) for shard in (1, 2) for row in range(20)]
    assert causes.count("missing_shard") == 20
    assert causes.count("damaged_shard") > 10
    assert len(opened) <= 3


def test_the_error_of_a_lost_shard_does_not_grow_with_its_samples(tmp_path):
    pattern = damaged(tmp_path, lambda path: cut(path, 0.3))
    cursor = ShardCursor(open_shards(pattern, key="k"), None)
    frames = []
    for row in range(20):
        try:
            cursor.read(2, row)
        except DamagedShardError as error:
            frames.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(frames) > 10
    assert len(set(frames[1:])) == 1


def test_a_shard_that_vanished_is_replaced(tmp_path):
    pattern = write_shards(tmp_path, SIZES)
    opened = train_data(pattern).open()
    (tmp_path / "00001.tar").unlink()
    reference = epoch(opened)
    found = broken_of(reference)
    assert len(found) == 20
    assert {broken.cause for broken in found} == {"missing_shard"}
    assert epoch(opened, start=4) == reference[4:]


def test_a_url_that_vanished_is_replaced_the_same(tmp_path):
    pattern = write_shards(tmp_path / "s", SIZES)
    opened = train_data(pattern).open()
    with serving_files(tmp_path) as address:
        distant = train_data(pattern.replace(str(tmp_path), address)).open()
        (tmp_path / "s/00001.tar").unlink()
        found = epoch(distant)
    local = epoch(opened)
    assert [len(broken) for _, broken in found] == [len(broken) for _, broken in local]
    assert {broken.cause for broken in broken_of(found)} == {"missing_shard"}
    strip = [[(key.replace(address, str(tmp_path)), image) for key, image in rows] for rows, _ in found]
    assert strip == [rows for rows, _ in local]


def test_each_shard_is_named_once_in_the_log(tmp_path, caplog):
    pattern = damaged(tmp_path, lambda path: cut(path, 0.2))
    assert len(broken_of(epoch(train_data(pattern).open()))) > 10
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
    assert "another sample takes the place of" in caplog.text


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_shard_cut_before_it_was_counted_has_the_samples_before_the_cut(tmp_path, suffix, caplog):
    write_shards(tmp_path, [24], suffix=suffix)
    path = tmp_path / f"00000.{suffix}"
    if suffix == "tar":  # within a header
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"000010.png") + 100])
    else:
        cut(path, 0.5)
    (size,) = shard_sizes([str(path)])
    assert 8 <= size < 24
    assert f"is counted up to its sample {size} only" in caplog.text


def test_readers_of_single_samples_are_told_what_is_wrong(tmp_path):
    pattern = write_shards(tmp_path, [6, 6])
    found = open_shards(pattern, key="k")
    cut(tmp_path / "00000.tar", 0.5)
    (tmp_path / "00001.tar").unlink()
    cursor = ShardCursor(found, None)
    with pytest.raises(DamagedShardError, match=r"00000\.tar cannot be read at sample 5"):
        cursor.read(0, 5)
    assert cursor.read(0, 1).key == "000001"
    with pytest.raises(MissingShardError, match=r"00001\.tar is not there any more"):
        cursor.read(1, 0)


def test_a_damaged_index_is_an_error_that_names_it(tmp_path):
    pattern = write_shards(tmp_path, SIZES)
    opened = train_data(pattern).open()
    path = tmp_path / "00002.index.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"00002\.index\.parquet is no index: .*; delete it") as caught:
        epoch(opened)
    assert str(caught.value).count("00002") == 1
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": None}))
    with pytest.raises(DataError, match=r"sizes\.json holds more than counts"):
        open_shards(pattern, key="k")
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": -3}))
    with pytest.raises(DataError, match=r"sizes\.json holds more than counts: .-3. is no number of samples"):
        open_shards(pattern, key="k")


class Bomb:
    exploded = False

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


def test_members_that_could_run_code_are_never_loaded(tmp_path):
    change = {
        f"{n:06d}": sample(n)
        | {
            "pyd": pickle.dumps(Bomb()),
            "pickle": pickle.dumps(Bomb(), protocol=0),
            "yaml": b"!!python/name:os",
        }
        for n in range(16)
    }
    pattern = write_shards(tmp_path, [16], change=change)
    assert len(epoch(train_data(pattern).open(), start=8)) == 2
    found = open_shards(pattern, key="k")
    assert len(list(read_records(found))) == 16
    loader = eval_loader(found, PREPROCESS, batch_size=8, num_workers=0, rank=0, world_size=1)
    assert sum(len(batch.records) for batch in loader) == 16
    assert not Bomb.exploded
    pickle.loads(change["000000"]["pyd"])
    assert Bomb.exploded


def test_names_that_lead_out_of_a_folder_are_only_names(tmp_path):
    names = ["../../escaped", "/tmp/escaped", "..", "a/../../b", "C:\\escaped"]
    (tmp_path / "deep/er").mkdir(parents=True)
    write_tar(tmp_path / "deep/er/a.tar", {name: sample(n) for n, name in enumerate(names)})
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    cursor = ShardCursor(open_shards(f"{tmp_path}/deep/er/a.tar", key="k"), None)
    assert [cursor.read(0, n).key for n in range(4)] == [name for name in names if name != ".."]
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert {path.name for path in after} - {path.name for path in before} <= {
        "a.index.parquet",
        "sizes.json",
        ".index.lock",
    }
