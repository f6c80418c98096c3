"""The folder of copies: bounded, safe under several processes, never stale."""

import errno
import logging
import multiprocessing
import os

import pytest
from servers import Weather, proxy, serving_files
from small_shards import REMOTE

from vlm.data import ShardCache
from vlm.data import cache as cache_module
from vlm.data.tar import open_shard
from vlm.errors import ConfigError

KIB = 1 << 10
MIB_IN_GIB = 1 / 1024


@pytest.fixture
def weather():
    return Weather(0.0)


@pytest.fixture
def address(tmp_path, weather):
    (tmp_path / "store").mkdir()
    for name in "abcd":
        (tmp_path / f"store/{name}.tar").write_bytes(name.encode() * 400 * KIB)
    with serving_files(tmp_path / "store") as server, proxy(server, weather) as proxied:
        yield proxied


@pytest.fixture
def copies(tmp_path):
    return tmp_path / "copies"


def read(cache, url):
    with open_shard(url, remote=REMOTE, cache=cache) as file:
        return file.read()


def kept(copies):
    """The first letters of the copies in the folder."""
    return sorted(path.read_bytes()[:1].decode() for path in copies.glob("*.shard*"))


def test_a_shard_is_fetched_once(address, copies, weather):
    cache = ShardCache(folder=str(copies), max_gib=1.0)
    assert read(cache, f"{address}/a.tar") == b"a" * 400 * KIB
    sent = weather.bytes_sent
    assert read(cache, f"{address}/a.tar") == b"a" * 400 * KIB
    assert weather.bytes_sent == sent
    assert kept(copies) == ["a"]


def test_without_a_folder_nothing_is_kept(address, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert read(ShardCache(folder=None, max_gib=1.0), f"{address}/a.tar") == b"a" * 400 * KIB
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shard_that_changed_is_fetched_again(address, copies, tmp_path):
    cache = ShardCache(folder=str(copies), max_gib=1.0)
    read(cache, f"{address}/a.tar")
    path = tmp_path / "store/a.tar"
    path.write_bytes(b"x" * path.stat().st_size)  # the same size at another time
    os.utime(path, (1, 1))
    assert read(cache, f"{address}/a.tar") == b"x" * 400 * KIB


def test_the_shards_not_used_for_longest_make_room(address, copies):
    cache = ShardCache(folder=str(copies), max_gib=MIB_IN_GIB)  # two of 400 KiB fit
    for name in "abac":
        read(cache, f"{address}/{name}.tar")
        assert sum(path.stat().st_size for path in copies.glob("*.shard*")) <= 1 << 20
    assert kept(copies) == ["a", "c"]


def test_what_is_in_use_stays_and_the_rest_is_read_without_a_copy(address, copies, caplog):
    cache = ShardCache(folder=str(copies), max_gib=MIB_IN_GIB)
    with (
        open_shard(f"{address}/a.tar", remote=REMOTE, cache=cache) as first,
        open_shard(f"{address}/b.tar", remote=REMOTE, cache=cache) as second,
    ):
        assert read(cache, f"{address}/c.tar") == b"c" * 400 * KIB
        assert read(cache, f"{address}/d.tar") == b"d" * 400 * KIB
        assert first.read() + second.read() == b"a" * 400 * KIB + b"b" * 400 * KIB
    assert kept(copies) == ["a", "b"]
    assert len(caplog.messages) == 1
    assert "has no room beside the shards in use" in caplog.text


def test_a_shard_larger_than_the_folder_may_be_costs_no_other_its_copy(address, copies):
    cache = ShardCache(folder=str(copies), max_gib=MIB_IN_GIB)
    read(cache, f"{address}/a.tar")
    small = ShardCache(folder=str(copies), max_gib=MIB_IN_GIB / 4)
    assert read(small, f"{address}/b.tar") == b"b" * 400 * KIB
    assert kept(copies) == ["a"]


def test_a_full_disk_costs_a_warning_and_nothing_else(address, copies, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module.os, "posix_fallocate", full)
    cache = ShardCache(folder=str(copies), max_gib=1.0)
    with caplog.at_level(logging.WARNING):
        for name in "ab":
            assert read(cache, f"{address}/{name}.tar") == name.encode() * 400 * KIB
    assert kept(copies) == []
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.text


def test_a_folder_that_cannot_be_made_costs_a_warning(address, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = ShardCache(folder=str(tmp_path / "file/copies"), max_gib=1.0)
    assert read(cache, f"{address}/a.tar") == b"a" * 400 * KIB
    assert "is read without a copy" in caplog.text


def test_what_a_killed_process_left_is_removed_and_other_files_stay(address, copies):
    copies.mkdir()
    (copies / ("0" * 32 + ".shard." + "1" * 32 + ".part")).write_bytes(b"left" * 1000)
    (copies / "notes.txt").write_text("somebody's")
    read(ShardCache(folder=str(copies), max_gib=MIB_IN_GIB), f"{address}/a.tar")
    assert kept(copies) == ["a"]
    assert (copies / "notes.txt").exists()


def test_a_download_that_breaks_off_is_no_copy(address, copies, weather):
    cache = ShardCache(folder=str(copies), max_gib=1.0)
    weather.share, weather.ways = 0.4, ("drop", 500)
    for name in "abcd":
        assert read(cache, f"{address}/{name}.tar") == name.encode() * 400 * KIB
    assert weather.failed > 3
    assert kept(copies) == ["a", "b", "c", "d"]


def _read_all(cache, address, seed, queue):
    names = [*"abcdabcdabcd"]
    for name in names[seed:] + names[:seed]:
        assert read(cache, f"{address}/{name}.tar") == name.encode() * 400 * KIB
    queue.put(seed)


def test_processes_share_a_folder_too_small_for_all(address, copies):
    cache = ShardCache(folder=str(copies), max_gib=1.5 * MIB_IN_GIB)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_read_all, args=(cache, address, n, queue)) for n in range(4)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [0, 1, 2, 3]
    for process in processes:
        process.join()
    assert 1 <= len(kept(copies)) <= 3
    assert not list(copies.glob("*.part"))


def test_processes_that_want_the_same_shard_fetch_it_once(address, copies, weather):
    cache = ShardCache(folder=str(copies), max_gib=1.0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    processes = [context.Process(target=_read_one, args=(cache, address, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [400 * KIB] * 4
    for process in processes:
        process.join()
    assert weather.bytes_sent == 400 * KIB


def _read_one(cache, address, queue):
    queue.put(len(read(cache, f"{address}/a.tar")))


def test_an_impossible_size_is_refused():
    with pytest.raises(ConfigError, match=r"data\.cache\.max_gib=0\.0 must be"):
        ShardCache(folder=None, max_gib=0.0)
