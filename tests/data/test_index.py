import json
import multiprocessing
import os

import pyarrow.parquet as pq
import pytest
from small_shards import sample, write_shards, write_tar

from vlm.data.index import index_shards, read_offsets, shard_sizes, stored_sizes, write_sizes
from vlm.data.shards import ShardCursor, ShardSet, open_shards
from vlm.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_one_pass_counts_shards_and_keeps_the_counts_beside_them(tmp_path, cache):
    shards = open_shards(write_shards(tmp_path / "s", [3, 0, 5]), key="k")
    assert shards.sizes == (3, 0, 5)
    assert json.loads((tmp_path / "s/sizes.json").read_text()) == {
        "00000.tar": 3,
        "00001.tar": 0,
        "00002.tar": 5,
    }
    assert not cache.exists()


def test_offsets_name_the_bytes_of_each_sample(tmp_path):
    (url,) = open_shards(write_shards(tmp_path, [4]), key="k").urls
    rows = pq.read_table(tmp_path / "00000.index.parquet").to_pylist()
    data = (tmp_path / "00000.tar").read_bytes()
    assert [row["key"] for row in rows] == [f"{n:06d}" for n in range(4)]
    assert all(data[row["offset"] :].startswith(f"{row['key']}.png".encode()) for row in rows)
    assert [a["offset"] + a["size"] for a in rows[:-1]] == [b["offset"] for b in rows[1:]]
    assert set(data[rows[-1]["offset"] + rows[-1]["size"] :]) == {0}
    assert read_offsets(url).tolist() == [row["offset"] for row in rows]


def test_counts_that_stand_beside_the_shards_are_believed(tmp_path):
    pattern = write_shards(tmp_path, [3, 4, 5])
    (tmp_path / "sizes.json").write_text('{"00000.tar": "2", "unrelated.tar": 9}')
    (tmp_path / "00001_stats.json").write_text('{"count": 9, "successes": 1}')
    assert open_shards(pattern, key="k").sizes == (2, 1, 5)
    assert json.loads((tmp_path / "sizes.json").read_text())["unrelated.tar"] == 9


def test_a_folder_that_may_not_be_written_has_its_index_in_the_cache(tmp_path, cache):
    pattern = write_shards(tmp_path / "s", [3])
    before = sorted(os.listdir(tmp_path / "s"))
    os.chmod(tmp_path / "s", 0o555)
    shards = open_shards(pattern, key="k")
    assert shards.sizes == (3,)
    assert sorted(os.listdir(tmp_path / "s")) == before
    assert len(read_offsets(shards.urls[0])) == 3


def test_a_cached_count_older_than_its_shard_is_taken_again(tmp_path, cache):
    pattern = write_shards(tmp_path / "s", [3])
    os.chmod(tmp_path / "s", 0o555)
    assert open_shards(pattern, key="k").sizes == (3,)
    write_shards(tmp_path / "s", [4])
    later = max(path.stat().st_mtime for path in cache.rglob("sizes.json")) + 5
    os.utime(tmp_path / "s/00000.tar", (later, later))
    assert open_shards(pattern, key="k").sizes == (4,)


def test_compressed_shards_and_pipes_are_counted_without_offsets(tmp_path, cache):
    open_shards(write_shards(tmp_path, [3], suffix="tar.gz"), key="k")
    assert not list(tmp_path.glob("*.parquet"))
    command = f"pipe:cat {tmp_path}/00000.tar.gz"
    assert shard_sizes([command, command]) == (3, 3)
    assert read_offsets(command) is None


def _count(pattern, queue):
    queue.put(open_shards(pattern, key="k").sizes)


def test_what_a_killed_process_left_is_swept_up(tmp_path):
    pattern = write_shards(tmp_path, [3, 4])
    for name in (".00000.index.parquet.0f.partial", ".sizes.json.0f.partial"):
        (tmp_path / name).write_text("{")
    assert open_shards(pattern, key="k").sizes == (3, 4)
    assert not list(tmp_path.glob("*.partial"))


def test_processes_that_index_at_once_agree(tmp_path):
    pattern = write_shards(tmp_path, [3] * 20)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_count, args=(pattern, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=30) for _ in processes] == [(3,) * 20] * 4
    for process in processes:
        process.join()
    assert not list(tmp_path.glob(".*.json.*"))


def test_sizes_are_added_to_those_of_other_shards(tmp_path):
    write_sizes(tmp_path, {"b.tar": 2})
    write_sizes(tmp_path, {"a.tar": 1, "b.tar": 3})
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"a.tar": 1, "b.tar": 3}


def test_a_file_that_is_no_tar_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"a\.tar cannot be read to its end: no tar header at byte 0"):
        open_shards(f"{tmp_path}/a.tar", key="k")


def test_broken_sizes_are_an_error_that_names_them(tmp_path):
    pattern = write_shards(tmp_path, [1])
    (tmp_path / "sizes.json").write_text("{")
    with pytest.raises(DataError, match=r"sizes\.json is no json"):
        open_shards(pattern, key="k")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_cursor_reaches_every_row_from_every_other(tmp_path, suffix, indexed):
    shards = open_shards(write_shards(tmp_path, [3, 4], suffix=suffix), key="k")
    if not indexed:
        for path in tmp_path.glob("*.parquet"):
            path.unlink()
    for first in range(7):
        for second in range(7):
            cursor = ShardCursor(shards, frozenset({"txt"}))
            keys = [cursor.read(*shards.locate(row)).key for row in (first, second)]
            assert keys == [f"{first:06d}", f"{second:06d}"]
            cursor.close()


def test_a_shard_shorter_than_its_index_is_an_error_that_names_it(tmp_path):
    path = write_tar(tmp_path / "a.tar", {str(n): sample(n) for n in range(3)})
    shards = ShardSet((str(path),), (5,))
    cursor = ShardCursor(shards, None)
    with pytest.raises(
        DataError, match=r"a\.tar cannot be read at sample 4: .* its index names 5.*delete sizes\.json"
    ):
        cursor.read(0, 4)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_shard_longer_than_its_index_is_warned_of(tmp_path, caplog, suffix):
    path = write_tar(tmp_path / f"a.{suffix}", {str(n): sample(n) for n in range(4)})
    cursor = ShardCursor(ShardSet((str(path),), (4,)), None)
    assert [cursor.read(0, row).key for row in range(4)] == list("0123")
    assert not caplog.records
    cursor = ShardCursor(ShardSet((str(path),), (3,)), None)
    assert [cursor.read(0, row).key for row in (0, 1, 2, 1, 0)] == list("01210")
    (record,) = caplog.records
    assert f"a.{suffix} holds more samples than the 3 of its index" in record.message
    assert "delete sizes.json" in record.message


def test_a_shard_that_was_replaced_under_its_index_is_an_error_that_says_so(tmp_path):
    pattern = write_shards(tmp_path, [6])
    shards = open_shards(pattern, key="k")
    write_tar(tmp_path / "00000.tar", {str(n): {"txt": b"x" * 600 * n} for n in range(6)})
    with pytest.raises(
        DataError, match=r"00000\.tar cannot be read at sample 3: no tar header.*was replaced"
    ):
        ShardCursor(shards, None).read(0, 3)


def test_offsets_are_added_where_only_counts_are_known(tmp_path):
    pattern = write_shards(tmp_path, [3, 4])
    expected = [read_offsets(url).tolist() for url in open_shards(pattern, key="k").urls]
    for path in tmp_path.glob("*.index.parquet"):
        path.unlink()
    shards = open_shards(pattern, key="k")  # the counts are enough
    assert read_offsets(shards.urls[0]) is None
    assert index_shards(shards.urls) == {str(tmp_path): 2}
    assert [read_offsets(url).tolist() for url in shards.urls] == expected


def test_compressed_shards_get_counts_alone(tmp_path):
    shards = open_shards(write_shards(tmp_path, [3], suffix="tar.gz"), key="k")
    index_shards(shards.urls)
    assert read_offsets(shards.urls[0]) is None


def test_a_count_that_was_wrong_is_corrected(tmp_path, caplog):
    shards = open_shards(write_shards(tmp_path, [3, 4]), key="k")
    (tmp_path / "00001.index.parquet").unlink()
    (tmp_path / "sizes.json").write_text('{"00000.tar": 3, "00001.tar": 9, "other.tar": 1}')
    index_shards(shards.urls)
    assert "holds 4 samples, its index said 9" in caplog.text
    assert json.loads((tmp_path / "sizes.json").read_text()) == {
        "00000.tar": 3,
        "00001.tar": 4,
        "other.tar": 1,
    }


def test_stored_sizes_count_nothing(tmp_path):
    shards = open_shards(write_shards(tmp_path, [3]), key="k").urls
    (tmp_path / "00001.tar").write_bytes(b"no tar")
    assert stored_sizes([*shards, f"{tmp_path}/00001.tar"]) == (3, None)


def test_names_that_are_no_text_are_indexed(tmp_path):
    write_tar(tmp_path / "0.tar", {"a\udcff": {"txt": b"x"}})
    assert open_shards(f"{tmp_path}/0.tar", key="k").sizes == (1,)
