import errno
import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlm.data.writer import ShardWriter
from vlm.errors import DataError

Sample = tuple[str, dict[str, bytes]]


def samples(count: int) -> list[Sample]:
    # Sizes on both sides of tar's block of 512 bytes, and a key too long for one header.
    return [
        (
            f"{'long/' * (30 * (i % 3 == 2))}s{i:03d}",
            {"png": bytes([i]) * (511 + i), "txt": "红色".encode() * i},
        )
        for i in range(count)
    ]


def write(folder: Path, given: list[Sample], *, prefix: str = "", max_samples: int = 3) -> None:
    with ShardWriter(folder, prefix=prefix, max_samples=max_samples) as writer:
        for key, members in given:
            writer.write(key, members)


def read_tar(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def test_every_sample_is_in_one_shard_in_the_order_written(tmp_path: Path) -> None:
    given = samples(7)
    write(tmp_path, given)
    found = [member for shard in sorted(tmp_path.glob("*.tar")) for member in read_tar(shard.read_bytes())]
    assert found == [(f"{key}.{extension}", data) for key, m in given for extension, data in m.items()]
    assert json.loads((tmp_path / "sizes.json").read_text()) == {
        "00000.tar": 3,
        "00001.tar": 3,
        "00002.tar": 1,
    }


def test_index_cuts_each_sample_out_of_the_tar_as_a_tar_of_its_own(tmp_path: Path) -> None:
    given = samples(5)
    write(tmp_path, given, max_samples=5)
    content = (tmp_path / "00000.tar").read_bytes()
    rows = pq.read_table(tmp_path / "00000.index.parquet").to_pylist()
    assert [row["key"] for row in rows] == [key for key, _ in given]
    for row, (key, members) in zip(rows, given, strict=True):
        piece = content[row["offset"] : row["offset"] + row["size"]]
        assert read_tar(piece + bytes(1024)) == [
            (f"{key}.{extension}", data) for extension, data in members.items()
        ]
    assert [row["offset"] for row in rows[1:]] == [row["offset"] + row["size"] for row in rows[:-1]]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", samples(4))
    write(tmp_path / "b", samples(4))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_tar_headers_tell_nothing_of_the_time_and_the_user(tmp_path: Path) -> None:
    write(tmp_path, samples(1))
    with tarfile.open(tmp_path / "00000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_two_prefixes_share_a_folder_and_its_sizes(tmp_path: Path) -> None:
    write(tmp_path, samples(2), prefix="a-")
    write(tmp_path, samples(1), prefix="b-")
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"a-00000.tar": 2, "b-00000.tar": 1}


def test_an_exception_leaves_no_unfinished_shard(tmp_path: Path) -> None:
    def fail_after(given: list[Sample]) -> None:
        with ShardWriter(tmp_path, prefix="", max_samples=2) as writer:
            for key, members in given:
                writer.write(key, members)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after(samples(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.index.parquet", "00000.tar"]


def test_a_shard_has_its_name_only_when_whole(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, prefix="", max_samples=2) as writer:
        for i, (key, members) in enumerate(samples(3)):
            writer.write(key, members)
            assert len(list(tmp_path.glob("*.tar"))) == i // 2


def test_an_existing_shard_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path, samples(1))
    with pytest.raises(DataError, match="exists"):
        write(tmp_path, samples(1))


@pytest.mark.parametrize(
    ("key", "members", "message"),
    [
        ("a.b", {"txt": b""}, "has a dot"),
        ("", {"txt": b""}, "is empty"),
        ("first", {"txt": b""}, "written before"),
        ("new", {}, "no members"),
    ],
)
def test_samples_that_no_reader_could_tell_apart_are_refused(
    tmp_path: Path, key: str, members: dict[str, bytes], message: str
) -> None:
    with ShardWriter(tmp_path, prefix="", max_samples=2) as writer:
        writer.write("first", {"txt": b"one"})
        with pytest.raises(DataError, match=message):
            writer.write(key, members)


def test_max_samples_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_samples=0"):
        ShardWriter(tmp_path, prefix="", max_samples=0)


@pytest.mark.parametrize("name", ["a.png", "n" * 96 + ".png", "n" * 97 + ".png", "红" * 32 + ".png"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_bytes_are_those_of_tarfile(tmp_path: Path, name: str, size: int) -> None:
    key, extension = name.rsplit(".", 1)
    write(tmp_path, [(key, {extension: bytes(size), "txt": b"text"})])
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
        for member, content in ((name, bytes(size)), (f"{key}.txt", b"text")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert (tmp_path / "00000.tar").read_bytes() == expected.getvalue()


def test_shards_keep_to_max_bytes(tmp_path: Path) -> None:
    limit = 5 * 512  # each sample takes a header and two blocks
    with ShardWriter(tmp_path, prefix="", max_samples=100, max_bytes=limit * 3) as writer:
        for i in range(11):
            writer.write(f"{i:03d}", {"png": bytes(600), "txt": b"a"})
        writer.write("large", {"png": bytes(limit * 4)})
        writer.write("last", {"txt": b"a"})
    counts = json.loads((tmp_path / "sizes.json").read_text())
    assert list(counts.values()) == [3, 3, 3, 2, 1, 1]
    for name in counts:
        sizes = pq.read_table(tmp_path / f"{name[:5]}.index.parquet")["size"].to_pylist()
        assert sum(sizes) <= limit * 3 or len(sizes) == 1


def test_a_full_disk_leaves_whole_shards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ShardWriter(tmp_path, prefix="", max_samples=2)
    for key, members in samples(3):
        writer.write(key, members)
    monkeypatch.setattr("vlm.data.writer.write_offsets", no_space)
    with pytest.raises(OSError, match="No space"):
        writer.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.index.parquet", "00000.tar"]
