import contextlib
import gzip
import io
import os
import tarfile

import pytest
from small_shards import sample, write_tar

from vlm.data.remote import Remote, StoreError
from vlm.data.tar import DAMAGE, CutError, TarReader, open_shard

IMPATIENT = Remote(timeout_s=1.0, retries_s=0.0)


def read_all(path, members=None):
    reader = TarReader(open_shard(str(path)), url=str(path), members=members)
    samples = []
    while (raw := reader.read()) is not None:
        samples.append(raw)
    reader.close()
    return samples


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_what_was_written(tmp_path, suffix, form):
    keys = ["000000", "folder/000001", "图" * 60, "y" * 90 + "/" + "x" * 80]
    written = {key: sample(number) for number, key in enumerate(keys)}
    if form == tarfile.USTAR_FORMAT:
        written.pop("图" * 60)  # has no room for it
    path = write_tar(tmp_path / f"a.{suffix}", written, form=form)
    assert {raw.key: raw.members for raw in read_all(path)} == written


def test_what_is_no_sample_is_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    (tmp_path / "x.TXT").write_text("one")
    for name in ("README", ".hidden.txt", "._x.txt"):
        (tmp_path / name).write_text("no sample")
    with tarfile.open(path, "w") as tar:
        for name in ("README", ".hidden.txt", "x.TXT", "._x.txt"):
            tar.add(tmp_path / name, arcname=name)
        tar.add(tmp_path, arcname="folder.d", recursive=False)
    assert [(raw.key, raw.members) for raw in read_all(path)] == [("x", {"txt": b"one"})]


def test_members_that_nobody_wants_are_not_kept(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0": sample(0), "1": sample(1)})
    assert [set(raw.members) for raw in read_all(path, frozenset({"txt"}))] == [{"txt"}, {"txt"}]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_skipping_and_seeking_end_at_the_sample_that_reading_reaches(tmp_path, suffix):
    path = write_tar(tmp_path / f"a.{suffix}", {str(n): sample(n) for n in range(6)})
    reader = TarReader(open_shard(str(path)), url="", members=None)
    offsets = []
    for _ in range(6):
        offsets.append(reader.sample_offset)
        reader.read()
    for row in range(6):
        for move in ("skip", "seek"):
            reader = TarReader(open_shard(str(path)), url="", members=None)
            reader.skip(row) if move == "skip" else reader.seek(offsets[row])
            assert reader.read().key == str(row)


def test_a_pipe_is_read_like_a_file(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", {"0": sample(0), "1": sample(1)})
    for url in (f"pipe:cat {path}", f"pipe:gunzip -c {path}"):
        assert [raw.key for raw in read_all(url)] == ["0", "1"]
        assert [raw.members for raw in read_all(url, frozenset())] == [{}, {}]


def test_a_pipe_that_fails_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="the command ended with exit status 1 "):
        open_shard(f"pipe:cat {tmp_path}/absent.tar 2>/dev/null", remote=IMPATIENT)


def test_a_cut_file_is_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0": {"txt": b"x" * 2000}})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="ends at byte 1500"):
        read_all(path)


def test_bytes_that_are_no_header_are_an_error(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0": {"txt": b"x" * 2000}})
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no tar header at byte 0"):
        read_all(path)


def header(name=b"0.txt", *, size=b"00000000000", kind=b"0"):
    """One tar header with a right checksum."""
    block = bytearray(name.ljust(100, b"\0") + bytes(24) + size.ljust(12, b"\0") + bytes(20) + kind).ljust(
        512, b"\0"
    )
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * ord(" "))
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(size=b"\xff" * 12), "a member of -1 bytes"),
        (header(size=b"77777777777"), "a member of 8589934591 bytes"),
        (header(size=b"nonsense"), "invalid header"),
        (header(b"long", size=b"00000000010", kind=b"x") + b"0 path=a".ljust(512, b"\0"), "do not end"),
        (header(b"long", size=b"00000000010", kind=b"x") + b"x path=a".ljust(512, b"\0"), "invalid literal"),
        (header()[:300], "the file ends at byte 300, within a header"),
    ],
)
def test_a_header_that_lies_is_damage(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(DAMAGE, match=message):
        read_all(path)


def test_what_follows_a_whole_sample_does_not_spoil_it(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0": sample(0), "1": sample(1)})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"1.png") + 50])
    reader = TarReader(open_shard(str(path)), url="", members=None)
    assert reader.read().members == sample(0)
    assert reader.damaged
    with pytest.raises(CutError):
        reader.read()


def test_a_cut_gzip_file_gives_all_that_stands_before_the_cut(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {f"{n:02d}": {"txt": os.urandom(3000)} for n in range(20)})
    packed = gzip.compress(whole.read_bytes(), compresslevel=0)
    for members in (None, frozenset()):
        counts = []
        for size in range(10_000, 60_000, 7_000):
            (tmp_path / "b.tar.gz").write_bytes(packed[:size])
            reader = TarReader(open_shard(str(tmp_path / "b.tar.gz")), url="", members=members)
            count = 0
            with contextlib.suppress(*DAMAGE):
                while reader.read() is not None:
                    count += 1
            counts.append(count)
        # 3584 bytes a sample; the last may lack only its padding or the next header
        assert counts == [pytest.approx(size / 3584, abs=1.2) for size in range(10_000, 60_000, 7_000)]


def test_names_in_any_encoding_stay_apart_and_can_be_written(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(
        b"".join(header(f"{name}.txt".encode("gbk")) for name in ("图片一", "图片二")) + bytes(1024)
    )
    keys = [raw.key for raw in read_all(path)]
    assert len(set(keys)) == 2
    assert all(key.encode() for key in keys)


def test_a_second_file_of_one_name_begins_another_sample(tmp_path):
    write_tar(tmp_path / "a.tar", {"same": {"png": b"1", "txt": b"one"}})
    write_tar(tmp_path / "b.tar", {"same": {"png": b"2", "txt": b"two"}})
    first, second = ((tmp_path / name).read_bytes() for name in ("a.tar", "b.tar"))
    (tmp_path / "c.tar").write_bytes(first[: 4 * 512] + second)
    for members in (None, frozenset({"txt"}), frozenset()):
        reader = TarReader(open_shard(str(tmp_path / "c.tar")), url="c", members=members)
        samples = [reader.read(), reader.read(), reader.read()]
        assert [sample and sample.key for sample in samples] == ["same", "same", None]
        if members is None:
            assert [sample.members["txt"] for sample in samples[:2]] == [b"one", b"two"]


def test_zeros_in_the_place_of_a_header_are_no_end(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{n}": {"txt": b"x"} for n in range(4)})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    reader = TarReader(io.BufferedReader(io.BytesIO(data)), url="a", members=None)
    while reader.read():
        pass
    assert reader.has_end
    data[2 * 1024 : 2 * 1024 + 512] = bytes(512)
    reader = TarReader(io.BufferedReader(io.BytesIO(data)), url="a", members=None)
    assert [reader.read().key for _ in range(2)] == ["0", "1"]
    with pytest.raises(ValueError, match="zeros in the place of a header at byte 2048"):
        reader.read()
    reader = TarReader(io.BufferedReader(io.BytesIO(data[: 2 * 1024])), url="a", members=None)
    while reader.read():
        pass
    assert not reader.has_end
