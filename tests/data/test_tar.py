import tarfile

import pytest
from small_shards import sample, write_tar

from vlm.data.tar import TarReader, open_shard


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
    with pytest.raises(OSError, match="exit"):
        read_all(f"pipe:cat {tmp_path}/absent.tar 2>/dev/null")


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
