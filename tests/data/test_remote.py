"""Shards over http: a server that sends parts of files, and one that does not."""

import pytest
from servers import serving_files
from small_shards import tokenize, train_data, write_shards

from vlm.data import open_shards, read_images
from vlm.data.index import read_offsets
from vlm.data.tools.check import Check
from vlm.data.tools.shard_scan import UNREADABLE_IMAGE, UNREADABLE_SHARD, WRONG_INDEX


@pytest.fixture(params=[False, True], ids=["without ranges", "with ranges"])
def server(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving_files(tmp_path, ranges=request.param) as address:
        yield address


def keys(pattern, num_workers):
    opened = train_data(pattern, num_workers=num_workers).open()
    loader = opened.loader(tokenize, start_step=3, stop_step=9, rank=0, world_size=1)
    return [[key.rsplit("/", 1)[1] for key in batch["key"]] for batch in loader]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_url_is_read_in_the_same_order_as_a_path(server, tmp_path, suffix, indexed):
    local = write_shards(tmp_path / "s", [20, 5, 30], suffix=suffix)
    if indexed:
        open_shards(local, key="k")
    remote = local.replace(str(tmp_path), server)
    found = [keys(remote, num_workers) for num_workers in (0, 2)]
    assert found == [keys(local, 0)] * 2


def test_an_index_of_urls_is_kept_in_the_cache(server, tmp_path):
    write_shards(tmp_path / "s", [4, 5])
    shards = open_shards(f"{server}/s/{{00000..00001}}.tar", key="k")
    assert shards.sizes == (4, 5)
    assert not (tmp_path / "s/sizes.json").exists()
    assert len(read_offsets(shards.urls[1])) == 5
    (tmp_path / "s/00001.tar").unlink()
    assert open_shards(f"{server}/s/{{00000..00001}}.tar", key="k").sizes == (4, 5)


def test_single_images_are_reached_over_http(server, tmp_path):
    write_shards(tmp_path / "s", [40])
    shards = open_shards(f"{server}/s/00000.tar", key="k")
    assert [image.getpixel((0, 0))[0] for image in read_images(shards, [39, 3])] == [39, 3]


def test_shards_over_http_are_checked(server, tmp_path):
    write_shards(tmp_path / "s", [5, 6], change={"000003": {"png": b"", "txt": b"x"}})
    open_shards(f"{tmp_path}/s/*.tar", key="k")  # leaves sizes.json, which the check compares
    urls = f"{server}/s/{{00000..00001}}.tar"
    out = str(tmp_path / "found.json")
    values = {"captions": "txt", "tokenizer_path": None, "decode": True, "out": out, "workers": 2}
    findings = Check(shards=urls, **values).run()
    assert {kind: count for kind, count in findings.counts.items() if count} == {UNREADABLE_IMAGE: 1}
    assert findings.samples == 11
    (tmp_path / "s/00001.tar").unlink()
    findings = Check(shards=urls, **values).run()
    assert {kind: count for kind, count in findings.counts.items() if count} == {
        UNREADABLE_IMAGE: 1,
        UNREADABLE_SHARD: 1,
        WRONG_INDEX: 1,
    }
