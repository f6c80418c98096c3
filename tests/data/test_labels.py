"""Labels reach the rows of the samples they belong to, and images may come without captions."""

import gc
import json
import shutil
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import serving_files
from small_shards import image_bytes, sample, tokenize, train_data, write_shards

from vlm.broken import Cause
from vlm.data import Source, TrainData
from vlm.data.labels import LabelSidecars, write_sidecar
from vlm.data.loader import SourceReader
from vlm.data.tools.bench import bench
from vlm.errors import ConfigError, DataError

SIZES = [13, 1, 30, 0, 22, 9]
CLASSES = 100
WIDTH = 3


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def labels_of(number: int) -> list[int]:
    """Three labels, two, one or none, of which no other sample has the first."""
    return [number, (7 * number) % CLASSES, (11 * number) % CLASSES][: (number + 3) % 4]


def padded(labels: list[int], width: int = WIDTH) -> list[int]:
    return [*labels[:width], *[-1] * (width - len(labels[:width]))]


def write_labels(folder, sizes=SIZES, *, first=0, name="clusters", made_by="x", num_classes=CLASSES):
    folder.mkdir(exist_ok=True, parents=True)
    number = first
    for shard, size in enumerate(sizes):
        rows = [padded(labels_of(n)) for n in range(number, number + size)]
        write_sidecar(
            folder / f"{shard:05d}.{name}.parquet",
            np.array(rows, np.int32).reshape(size, WIDTH),
            num_classes=num_classes,
            made_by=made_by,
        )
        number += size


def labelled(shards, *, labels="clusters", captions="txt", changes=None, **of_source) -> TrainData:
    source = Source(shards=shards, captions=captions, labels=labels, **of_source)
    return train_data(shards, train=source, **(changes or {}))


@pytest.fixture
def shards(tmp_path):
    write_labels(tmp_path / "main")
    return write_shards(tmp_path / "main", SIZES)


def batches(data, start, stop, *, rank=0, world_size=1, tokenizer=tokenize):
    opened = data.open()
    ranks = {"rank": rank, "world_size": world_size}
    return list(opened.loader(tokenizer, start_step=start, stop_step=stop, **ranks))


def pairs(data, start=0, stop=18, *, world_size=1):
    """For each step the keys and labels of all ranks, sorted."""
    ranks = [batches(data, start, stop, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [
        sorted(pair for part in parts for pair in zip(part["key"], part["label"].tolist(), strict=True))
        for parts in zip(*ranks, strict=True)
    ]


def number_of(key: str) -> int:
    return int(key.rsplit("/", 1)[1])


def assert_own_labels(found, width: int = WIDTH) -> None:
    for step in found:
        for key, label in step:
            assert label == padded(labels_of(number_of(key)), width), key


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (1, 2), (2, 0), (4, 2)])
def test_keys_and_labels_of_a_step_do_not_depend_on_ranks_or_workers(shards, world_size, num_workers):
    reference = pairs(labelled(shards))
    assert len(reference) == 18
    assert_own_labels(reference)
    found = pairs(labelled(shards, changes={"num_workers": num_workers}), world_size=world_size)
    assert found == reference


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 2)])
def test_a_resume_at_any_step_goes_on_with_the_same_labels(shards, world_size, num_workers):
    reference = pairs(labelled(shards))
    data = labelled(shards, changes={"num_workers": num_workers})
    for start in (3, 8, 9, 14):
        assert pairs(data, start, world_size=world_size) == reference[start:]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("offsets", [True, False])
def test_rows_are_counted_the_same_with_and_without_offsets(tmp_path, suffix, offsets):
    write_labels(tmp_path)
    data = labelled(write_shards(tmp_path, SIZES, suffix=suffix))
    data.open()
    if not offsets:
        for path in tmp_path.glob("*.index.parquet"):
            path.unlink()
    assert_own_labels(pairs(data, 5))


def test_a_batch_without_labels_has_no_entry_and_the_same_rows_otherwise(shards):
    without = batches(labelled(shards, labels=None), 0, 4)
    assert all("label" not in batch for batch in without)
    for a, b in zip(without, batches(labelled(shards), 0, 4), strict=True):
        assert a["key"] == b["key"]
        assert a["image"].equal(b["image"])
        assert b["label"].shape == (8, WIDTH)


def test_the_substitute_of_a_broken_sample_brings_its_own_label(tmp_path):
    change = {f"{n:06d}": {"png": b"no image", "txt": b"x"} for n in range(0, 75, 3)}
    write_labels(tmp_path)
    data = labelled(write_shards(tmp_path, SIZES, change=change))
    found = pairs(data)
    assert sum(len(batch["broken"]) for batch in batches(data, 0, 9)) > 15
    assert_own_labels(found)
    assert pairs(labelled(f"{tmp_path}/*.tar", changes={"num_workers": 2}), world_size=2) == found


def test_a_substitute_from_another_shard_brings_its_own_label(tmp_path):
    sizes = [40, 40]
    write_labels(tmp_path, sizes)
    data = labelled(write_shards(tmp_path, sizes), changes={"shuffle_samples": 8})  # windows of one sample
    opened = data.open()
    (tmp_path / "00001.tar").write_bytes((tmp_path / "00001.tar").read_bytes()[:5000])
    found = list(opened.loader(tokenize, start_step=0, stop_step=10, rank=0, world_size=1))
    assert sum(len(batch["broken"]) for batch in found) > 30
    assert_own_labels(list(zip(batch["key"], batch["label"].tolist(), strict=True)) for batch in found)


def test_of_many_labels_the_first_are_taken(shards):
    assert_own_labels(pairs(labelled(shards, labels_per_sample=1), 0, 9), width=1)
    assert_own_labels(pairs(labelled(shards, labels_per_sample=5), 0, 9), width=5)


def test_the_class_member_is_a_label(tmp_path):
    change = {
        "000003": {"png": sample(3)["png"], "txt": b"x"},
        "000004": sample(4) | {"cls": b"-1"},
        "000005": sample(5) | {"cls": b"9" * 30},
        "000006": sample(6) | {"cls": b"cat"},
    }
    data = labelled(write_shards(tmp_path, [40], change=change), labels="cls")
    found = batches(data, 0, 5)
    for batch in found:
        for key, label in zip(batch["key"], batch["label"].tolist(), strict=True):
            number = number_of(key)
            assert label == [-1 if number in (3, 4) else number % 10]
    broken = {sample.key: sample.cause for batch in found for sample in batch["broken"]}
    assert broken == dict.fromkeys(("000005", "000006"), Cause.UNREADABLE_TEXT)
    assert data.open().num_classes is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_without_captions_are_all_there_is(tmp_path, num_workers):
    change = {
        "000001": {"png": sample(1)["png"]},
        "000002": {"json": b"[", "png": sample(2)["png"]},
        "000003": {"txt": b"no image"},
    }
    pattern = write_shards(tmp_path, [40], change=change)
    data = labelled(pattern, labels=None, captions=None, changes={"num_workers": num_workers})
    found = batches(data, 0, 5, tokenizer=None)
    assert all(batch.keys() == {"key", "image", "broken"} for batch in found)
    assert {number_of(key) for batch in found for key in batch["key"]} == set(range(40)) - {3}
    assert [sample.cause for batch in found for sample in batch["broken"]] == [Cause.NO_IMAGE]


def test_images_without_captions_have_labels(shards):
    data = labelled(shards, captions=None)
    found = batches(data, 0, 9, tokenizer=None)
    assert found[0].keys() == {"key", "image", "broken", "label"}
    assert_own_labels(list(zip(batch["key"], batch["label"].tolist(), strict=True)) for batch in found)


def test_shards_without_images_or_classes_are_refused(tmp_path):
    change = {f"{n:06d}": {"txt": b"a"} for n in range(20)}
    pattern = write_shards(tmp_path / "a", [20], change=change)
    with pytest.raises(DataError, match=r"00000.tar has an image \(jpg, png, jpeg, webp\); they have: txt$"):
        labelled(pattern, labels=None, captions=None).open()
    change = {f"{n:06d}": {"png": sample(n)["png"], "txt": b"a"} for n in range(20)}
    pattern = write_shards(tmp_path / "b", [20], change=change)
    message = r"has txt \(data.train.captions\) and cls \(data.train.labels\) beside an image .* png, txt$"
    with pytest.raises(DataError, match=message):
        labelled(pattern, labels="cls").open()
    with pytest.raises(DataError, match=r"has cls \(data.train.labels\) beside an image"):
        labelled(pattern, labels="cls", captions=None).open()


def test_a_tokenizer_and_captions_come_together(shards):
    with pytest.raises(ConfigError, match=r"^tokenizer=none cannot read captions; set"):
        batches(labelled(shards), 0, 1, tokenizer=None)
    with pytest.raises(ConfigError, match="captions=null leaves nothing for the tokenizer; set"):
        batches(labelled(shards, captions=None), 0, 1)


def test_each_source_has_labels_of_its_own(tmp_path, shards):
    extra = write_shards(tmp_path / "extra", [20], first=75)
    write_labels(tmp_path / "extra", [20], first=75, name="fine")
    mix = {"extra": Source(shards=extra, captions="txt", labels="fine", labels_per_sample=1, share=0.5)}
    for step in pairs(labelled(shards, changes={"mix": mix}), 0, 12):
        for key, label in step:
            number = number_of(key)
            assert label == padded(labels_of(number)[: 1 if number >= 75 else 3])


@pytest.mark.parametrize("name", ["labels", "captions"])
def test_all_sources_have_labels_or_none_and_likewise_captions(name):
    values = {"labels": "clusters", "captions": "txt"}
    mix = {"web": Source(shards="b.tar", share=0.5, **values | {name: None})}
    message = f"of data.train.{name} and data.mix.web.{name} one is null; name {name} for every source"
    with pytest.raises(ConfigError, match=message):
        train_data("a.tar", train=Source(shards="a.tar", **values), mix=mix)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": "runs/clusters"}, "data.train.labels='runs/clusters' is neither cls nor a name"),
        ({"labels": ""}, "data.train.labels='' is neither"),
        (
            {"labels": "index"},
            "data.train.labels='index' is neither .*; a folder goes into data.train.label",
        ),
        ({"labels": "cls", "labels_per_sample": 2}, "labels_per_sample=2 is for labels in sidecars, and dat"),
        (
            {"labels_from": "x"},
            "data.train.labels_from=x is for .*, and data.train.labels=null; set it to nu",
        ),
        ({"labels": "a", "labels_per_sample": 0}, "data.train.labels_per_sample=0 must be at least 1"),
    ],
)
def test_keys_that_contradict_each_other_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        train_data("a.tar", train=Source(shards="a.tar", captions="txt", **values))


def refused(data, message):
    with pytest.raises(DataError, match=message):
        data.open()


def test_missing_sidecars_are_refused_before_training(tmp_path, shards):
    folder = tmp_path / "main"
    (folder / "00003.clusters.parquet").unlink()  # of the empty shard
    labelled(shards).open()
    for shard in (1, 4):
        (folder / f"{shard:05d}.clusters.parquet").unlink()
    refused(
        labelled(shards),
        r"^data\.train\.labels=clusters: .*/00001\.clusters\.parquet does not exist and 1 more are missing; "
        r"make the labels, or say by data\.train\.labels_from where they lie$",
    )


def test_a_sidecar_of_another_length_is_refused_before_training(tmp_path, shards):
    write_labels(tmp_path / "other", [13, 1, 30, 0, 21, 9])
    shutil.copy(tmp_path / "other/00004.clusters.parquet", tmp_path / "main")
    refused(labelled(shards), r"labels=clusters: .*00004\.clusters\.parquet has 21 rows, its shard 22 sampl")


def test_what_is_no_sidecar_is_refused_before_training(tmp_path, shards):
    for number in range(6):
        pq.write_table(pa.table({"key": ["a"]}), tmp_path / f"main/{number:05d}.keys.parquet")
    refused(labelled(shards, labels="keys"), "00000.keys.parquet has no column label; it has key")
    path = tmp_path / "main/00000.clusters.parquet"
    path.write_bytes(path.read_bytes()[:50])
    refused(labelled(shards), "labels=clusters: .*00000.clusters.parquet cannot be read: .*make the labels a")
    pq.write_table(pa.table({"label": [[]] * 13}).cast(pa.schema({"label": pa.list_(pa.int32())})), path)
    refused(labelled(shards), "00000.clusters.parquet has no label for any sample")
    write_labels(tmp_path / "main")
    (tmp_path / "main/00005.clusters.parquet").write_bytes(b"PAR1")
    refused(labelled(shards), "00005.clusters.parquet cannot be read: ")


@pytest.mark.parametrize("changed", [{"num_classes": 101}, {"made_by": "another seed"}])
def test_labels_of_two_makings_are_not_mixed(tmp_path, shards, changed):
    write_labels(tmp_path / "other", **changed)
    shutil.copy(tmp_path / "other/00002.clusters.parquet", tmp_path / "main")
    refused(
        labelled(shards), r"00002\.clusters\.parquet \(10. classes.*\) and .*00000\.clusters.* of two maki"
    )


def test_sources_whose_classes_differ_are_not_mixed(tmp_path, shards):
    extra = write_shards(tmp_path / "extra", [20])
    write_labels(tmp_path / "extra", [20], num_classes=500)
    mix = {"web": Source(shards=extra, captions="txt", labels="clusters", share=0.5)}
    message = "data.train.labels: 100 classes, made by x; data.mix.web.labels: 500 classes, made by x"
    refused(labelled(shards, changes={"mix": mix}), message)
    write_labels(tmp_path / "extra", [20], made_by="another seed")
    refused(labelled(shards, changes={"mix": mix}), "data.mix.web.labels: 100 classes, made by another seed")
    mix = {"web": Source(shards=extra, captions="txt", labels="cls", share=0.5)}
    refused(labelled(shards, changes={"mix": mix}), "data.mix.web.labels: of the member cls")
    assert labelled(shards).open().num_classes == CLASSES


def test_a_sidecar_that_changes_during_training_ends_it(tmp_path, shards):
    opened = labelled(shards).open()
    write_labels(tmp_path / "main", made_by="another seed")
    write_labels(tmp_path / "other")
    shutil.copy(tmp_path / "other/00000.clusters.parquet", tmp_path / "main")
    with pytest.raises(DataError, match="which mean different things"):
        list(opened.loader(tokenize, start_step=0, stop_step=9, rank=0, world_size=1))
    for path in (tmp_path / "main").glob("*.clusters.parquet"):
        path.unlink()
    with pytest.raises(DataError, match=r"clusters.parquet cannot be read: No such file or directory"):
        list(opened.loader(tokenize, start_step=0, stop_step=9, rank=0, world_size=1))


def test_a_shard_of_more_labels_than_the_first_is_refused_with_the_key(tmp_path):
    pattern = write_shards(tmp_path, [40, 40])
    for shard, lists in enumerate([[[1, 2]] * 40, [[1, 2, 3]] * 40]):
        pq.write_table(pa.table({"label": lists}), tmp_path / f"{shard:05d}.mine.parquet")
    message = "has 3 labels for a sample, .*00000.mine.parquet at most 2; set data.train.labels_per_sample"
    with pytest.raises(DataError, match=message):
        batches(labelled(pattern, labels="mine"), 0, 10)
    found = batches(labelled(pattern, labels="mine", labels_per_sample=3), 0, 10)
    assert sorted({tuple(label) for batch in found for label in batch["label"].tolist()}) == [
        (1, 2, -1),
        (1, 2, 3),
    ]


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path):
    pattern = write_shards(tmp_path / "a", SIZES)
    write_labels(tmp_path / "clusters")
    assert_own_labels(pairs(labelled(pattern, labels_from=f"{tmp_path}/clusters")))
    write_shards(tmp_path / "b", SIZES)
    both = f"{tmp_path}/{{a,b}}/00000.tar"
    refused(
        labelled(both, labels_from=f"{tmp_path}/clusters"),
        "a/00000.tar and .*b/00000.tar would share .*00000.clusters.parquet; leave out data.train.labels_f",
    )


def test_labels_of_distant_shards_come_from_beside_them_or_from_a_folder(tmp_path, shards):
    reference = pairs(labelled(shards), 7, 10)
    with serving_files(tmp_path) as address:
        distant = shards.replace(str(tmp_path), address)
        assert strip(pairs(labelled(distant), 7, 10)) == strip(reference)
        data = labelled(distant, labels_from=f"{address}/main", changes={"num_workers": 1})
        assert strip(pairs(data, 7, 10)) == strip(reference)
        for path in (tmp_path / "main").glob("*.clusters.parquet"):
            path.rename(tmp_path / path.name)
        assert strip(pairs(labelled(distant, labels_from=str(tmp_path)), 7, 10)) == strip(reference)
        message = "data.train.labels=clusters: http.*00000.clusters.parquet cannot be read: .*404"
        refused(labelled(distant), message)


def strip(found):
    return [[(number_of(key), label) for key, label in step] for step in found]


def test_nothing_lies_beside_a_command(tmp_path):
    path = write_shards(tmp_path, [20]).replace("{00000..00000}", "00000")
    refused(labelled(f"pipe:cat {path}"), "nothing can lie beside 'pipe:cat .*use data.train.labels=cls")


def test_labels_are_held_while_their_shard_is_open(shards, monkeypatch):
    held = []
    read = LabelSidecars.read

    def watched(sidecars, shard):
        labels = read(sidecars, shard)
        held.append(weakref.ref(labels))
        return labels

    monkeypatch.setattr(LabelSidecars, "read", watched)
    data = labelled(shards, changes={"stream_groups": 1, "streams_per_group": 1})
    reader = SourceReader(data.open().sources[0], rank=0, world_size=1)
    for step in range(9):
        list(reader.slots(step))
    gc.collect()
    assert 5 <= len(held) <= 6  # the shard that the circle begins in is read twice
    assert sum(labels() is not None for labels in held) == 1


def test_other_labels_of_the_same_name_are_noticed_at_resume(tmp_path, shards):
    stored = json.loads(json.dumps(labelled(shards).open().fingerprint))
    before, now = labelled(shards).open().beside(stored)["data.train"]
    assert before == now
    assert before.keys() > {"labels_sha256", "bytes_sha256"}
    write_labels(tmp_path / "main", first=1)
    before, now = labelled(shards).open().beside(stored)["data.train"]
    assert before != now
    assert {name for name in now if before[name] != now[name]} == {"labels_sha256"}


def test_loading_is_measured_without_a_tokenizer(tmp_path, shards):
    data = labelled(shards, captions=None)
    assert bench(data, data.open(), None, seconds=0.1).samples > 0
    change = {f"{n:06d}": {"png": image_bytes((1, 2, 3))} for n in range(40)}
    data = train_data(
        "", train=Source(shards=write_shards(tmp_path / "b", [40], change=change), captions=None)
    )
    assert bench(data, data.open(), None, seconds=0.1).samples > 0
