"""Packing and indexing that are killed, or that fill the disk."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_tables import contents, pack, write_table
from small_disk import fill, small_disk
from small_shards import write_shards

from vlm.data.index import read_offsets, stored_sizes
from vlm.data.shards import open_shards
from vlm.errors import DataError

COUNT = 1000
SAMPLES = 40

# Packs as the command does, but slowly: a run that is done in a tenth of a second is hard to kill.
SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from picture_tables import pack
from vlm.data.writer import OpenShard
add = OpenShard.add
OpenShard.add = lambda *arguments: (time.sleep(0.001), add(*arguments))
print("ready", flush=True)
pack(Path(sys.argv[1]), Path(sys.argv[2]), max_samples=40, workers=int(sys.argv[3])).run()
"""


def start(table: Path, out: Path, *, workers: int) -> subprocess.Popen[bytes]:
    arguments = [str(table), str(out), str(workers), str(Path(__file__).parents[1])]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, workers: int) -> None:
    table = write_table(tmp_path, COUNT, broken={7: None, 123: b"nothing"})
    pack(table, tmp_path / "whole", max_samples=SAMPLES).run()
    out = tmp_path / "out"
    rng = random.Random(workers)
    kept: dict[str, int] = {}
    stages = set()
    for _ in range(5):
        process = start(table, out, workers=workers)
        wanted = len(kept) + rng.randint(0, 3)
        while len(list(out.glob("*.tar"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.04)  # into the next shard
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        assert kept.items() <= times.items()  # no shard is written twice
        kept = times
        stages.add(len(kept))
    assert len(stages) > 1
    assert start(table, out, workers=workers).wait() == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}.items()
    assert contents(out) == contents(tmp_path / "whole")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, size="2m") as disk:
        yield disk


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_packing_and_keeps_what_is_complete(
    tmp_path: Path, disk: Path, workers: int
) -> None:
    table = write_table(tmp_path, COUNT)
    pack(table, tmp_path / "whole", max_samples=SAMPLES).run()
    filler = disk / "filler"
    filler.write_bytes(bytes(500_000))
    out = disk / "out"
    with pytest.raises(
        DataError, match=r"No space left on device.* (\d+) of 25 shards are complete and stay"
    ):
        pack(table, out, max_samples=SAMPLES, workers=workers).run()
    complete = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert 0 < len(complete) < 25
    assert all((tmp_path / "whole" / name).read_bytes() == data for name, data in complete.items())
    assert not list(out.glob("*.partial"))

    filler.unlink()  # still not enough for all of them
    with pytest.raises(DataError, match="No space left"):
        pack(table, out, max_samples=SAMPLES, workers=workers).run()
    more = {path.name for path in out.glob("*.tar")}
    assert complete.keys() < more
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    pack(table, out, max_samples=SAMPLES, workers=workers).run()
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_at_the_very_beginning_is_one_message(tmp_path: Path, disk: Path) -> None:
    table = write_table(tmp_path, 20)
    fill(disk)
    with pytest.raises(DataError, match="No space left on device"):
        pack(table, disk / "out").run()


def test_a_full_disk_stops_indexing_and_keeps_the_index_that_was(disk: Path) -> None:
    shards = disk / "shards"
    write_shards(shards, [30, 30])
    first = open_shards(f"{shards}/00000.tar", key="k")
    before = {path.name: path.read_bytes() for path in shards.iterdir() if path.name != ".index.lock"}
    fill(disk)
    with pytest.raises(
        DataError, match=r"cannot be written: No space left on device; what was there is unchanged"
    ):
        open_shards(f"{shards}/*.tar", key="k")
    after = {path.name: path.read_bytes() for path in shards.iterdir() if path.name != ".index.lock"}
    assert after == before
    assert stored_sizes(first.urls) == (30,)
    (disk / "filler").unlink()
    assert open_shards(f"{shards}/*.tar", key="k").sizes == (30, 30)
    assert read_offsets(f"{shards}/00001.tar") is not None
