"""What each rank and worker is given, against the order's definition."""

import gc
import logging
import random
import weakref
from itertools import chain

import pytest
import torch
from small_shards import image_bytes, sample, tokenize, train_data, write_shards
from torch.utils.data import DataLoader

from vlm.data import Source
from vlm.errors import DataError

SIZES = [13, 1, 30, 0, 22, 9]  # 75 samples: 9 batches of 8, which 2 groups and 2 workers do not divide


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "main", SIZES)


def batches(data, start, stop, *, rank=0, world_size=1):
    opened = data.open()
    return list(opened.loader(tokenize, start_step=start, stop_step=stop, rank=rank, world_size=world_size))


def global_batches(data, start, stop, *, world_size=1):
    """For each step the keys and images of all ranks, by stream and so independent of the ranks."""
    ranks = [batches(data, start, stop, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [sorted(zip(*merge(parts), strict=True)) for parts in zip(*ranks, strict=True)]


def merge(parts):
    """Keys with the bytes of their images and captions."""
    keys = [key for part in parts for key in part["key"]]
    images = [bytes(image.numpy().tobytes()) for part in parts for image in part["image"]]
    texts = [bytes(row[row > 0].tolist()).decode() for part in parts for row in part["text"]]
    return keys, images, texts


def numbers(batch):
    return [int(key.rsplit("/", 1)[1]) for key in batch["key"]]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_global_batches_do_not_depend_on_ranks_or_workers(shards, world_size, num_workers):
    reference = global_batches(train_data(shards), 0, 18)
    assert len(reference) == 18
    data = train_data(shards, num_workers=num_workers)
    assert global_batches(data, 0, 18, world_size=world_size) == reference


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resume_at_any_step_goes_on_with_the_same_batches(shards, world_size, num_workers):
    reference = global_batches(train_data(shards), 0, 18)
    data = train_data(shards, num_workers=num_workers)
    for start in (3, 8, 9, 14):
        assert global_batches(data, start, 18, world_size=world_size) == reference[start:]


@pytest.mark.parametrize(
    ("sizes", "suffix", "changes"),
    [
        (SIZES, "tar", {}),
        (SIZES, "tar.gz", {"num_workers": 2}),
        ([75], "tar", {"num_workers": 2}),
        ([40], "tar", {"stream_groups": 6, "num_workers": 3}),  # 5 batches an epoch, fewer than groups
        ([25, 25, 25], "tar", {"shuffle_samples": 1}),
        ([25, 25, 25], "tar", {"shuffle_samples": 10_000}),
    ],
)
def test_an_epoch_has_each_sample_at_most_once_and_as_many_as_fit(tmp_path, sizes, suffix, changes):
    data = train_data(write_shards(tmp_path, sizes, suffix=suffix), **changes)
    per_epoch = data.open().batches_per_epoch
    assert per_epoch == sum(sizes) // 8
    seen = [numbers(batch) for batch in batches(data, 0, 2 * per_epoch)]
    epochs = [list(chain(*seen[:per_epoch])), list(chain(*seen[per_epoch:]))]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == per_epoch * 8
    assert epochs[0] != epochs[1]


def test_the_rows_of_a_batch_belong_together(shards):
    data = train_data(shards, augment=None)
    for batch in batches(data, 0, 9):
        _, _, captions = merge([batch])
        assert captions == [f"caption {number}" for number in numbers(batch)]
        colors = [(number % 256, number // 256, 7) for number in numbers(batch)]
        assert [tuple(color) for color in batch["image"][:, :, 4, 4].tolist()] == colors
        assert batch["broken"] == []
        assert batch["text"].shape == (8, max(map(len, captions)))


def test_the_seed_decides_the_order(shards):
    first, second = (batches(train_data(shards, seed=seed), 0, 9) for seed in (0, 1))
    assert [batch["key"] for batch in first] != [batch["key"] for batch in second]


def test_a_sample_is_augmented_and_captioned_anew_each_epoch(tmp_path):
    pattern = write_shards(tmp_path, [8])
    data = train_data(
        pattern, train=Source(shards=pattern, captions=["txt", "json.caption_zh"]), stream_groups=1
    )
    epochs = [sorted(zip(*merge([batch]), strict=True)) for batch in batches(data, 0, 20)]
    assert len({tuple(text for _, _, text in epoch) for epoch in epochs}) > 1
    assert len({tuple(image for _, image, _ in epoch) for epoch in epochs}) == 20
    assert {text for epoch in epochs for _, _, text in epoch} > {"caption 3", "第3号", "编号3"}


def test_workers_may_be_spawned(shards):
    loader = train_data(shards).open().loader(tokenize, start_step=0, stop_step=4, rank=0, world_size=1)
    spawned = DataLoader(loader.dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [batch["key"] for batch in spawned] == [batch["key"] for batch in loader]


def test_sources_have_their_share_of_every_batch_and_epochs_of_their_own(tmp_path):
    main = write_shards(tmp_path / "main", [40])
    extra = write_shards(tmp_path / "extra", [13], first=1000)
    mix = {"extra": Source(shards=extra, captions="json.caption_en", share=0.5)}
    data = train_data(main, mix=mix, shuffle_samples=8)
    assert data.open().batches_per_epoch == 10
    reference = global_batches(data, 0, 20)
    for parts in (
        global_batches(data, 0, 20, world_size=2),
        global_batches(train_data(main, mix=mix, shuffle_samples=8, num_workers=2), 0, 20),
    ):
        assert parts == reference
    extras = []
    for batch in reference:
        captions = [text for _, _, text in batch]
        assert sum(text.startswith("caption") for text in captions) == 4
        extras.append([int(text.split()[1]) for text in captions if text.startswith("number")])
    for epoch in range(6):  # 3 batches of 4 in an epoch of 13
        assert len(set(chain(*extras[3 * epoch : 3 * epoch + 3]))) == 12


def test_the_shuffle_memory_is_shared_among_sources_and_streams(tmp_path):
    main = write_shards(tmp_path / "main", [20])
    mix = {"extra": Source(shards=write_shards(tmp_path / "extra", [20]), captions="txt", share=0.25)}
    data = train_data(main, mix=mix, global_batch_size=16, shuffle_samples=320)
    windows = [source.order.window for source in data.open()._sources]
    assert windows == [240 // 8, 80 // 8]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_sample_is_replaced_within_its_window_and_shifts_nothing(tmp_path, caplog, num_workers):
    broken = {
        "000010": {"png": b"no image", "txt": b"caption 10"},
        "000033": {**sample(33), "txt": b" "},
        "000050": {**sample(50), "png": image_bytes((50, 0, 7))[:45]},
    }
    whole = train_data(write_shards(tmp_path / "whole", SIZES))
    changes = {"num_workers": num_workers}
    damaged = train_data(write_shards(tmp_path / "damaged", SIZES, change=broken), **changes)
    windows, causes = {}, {}
    for step, (expected, found) in enumerate(
        zip(batches(whole, 0, 18), batches(damaged, 0, 18), strict=True)
    ):
        changed = [
            i for i, (a, b) in enumerate(zip(numbers(expected), numbers(found), strict=True)) if a != b
        ]
        assert {numbers(expected)[i] for i in changed} == set(numbers(expected)) & {10, 33, 50}
        assert [int(broken.key) for broken in found["broken"]] == [numbers(expected)[i] for i in changed]
        causes |= {int(broken.key): broken.cause for broken in found["broken"]}
        same = [i for i in range(8) if i not in changed]
        assert torch.equal(expected["image"][same], found["image"][same])
        for i in changed:
            windows[step, i] = (numbers(expected)[i], numbers(found)[i])
    assert 4 <= len(windows) <= 6
    assert causes == {10: "unreadable_image", 33: "empty_caption", 50: "unreadable_image"}
    assert all(abs(a - b) < 13 for a, b in windows.values())  # windows are 4 long, shards in runs
    if num_workers == 0:
        assert "damaged/00000.tar/000010: its png is unreadable" in caplog.text


def test_warnings_of_broken_samples_end(tmp_path, caplog):
    change = {f"{n:06d}": {"txt": b"no image"} for n in range(0, 100, 2)}
    data = train_data(write_shards(tmp_path, [101], change=change), shuffle_samples=101)
    with caplog.at_level(logging.WARNING):
        assert sum(len(batch["broken"]) for batch in batches(data, 0, 12)) > 20
    assert len(caplog.records) == 20
    assert "counted, not named" in caplog.messages[-1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_without_a_whole_sample_end_training_with_one_message(tmp_path, num_workers):
    pattern = write_shards(tmp_path, SIZES)
    data = train_data(pattern, num_workers=num_workers)
    data.open()
    change = {f"{n:06d}": {"txt": b"no image"} for n in range(16, 75)}
    write_shards(
        tmp_path, SIZES, change={**change, **{f"{n:06d}": sample(n) | {"png": b""} for n in range(16)}}
    )
    with pytest.raises(
        DataError, match=r"^data.train: 6[0-9] samples that could take one place are all broken"
    ) as caught:
        batches(data, 0, 9)
    assert "Traceback" not in str(caught.value)
    assert not caught.value.of_all_ranks  # the others may have whole samples: this rank has to tell


def test_shards_that_all_vanish_are_not_put_down_to_captions(tmp_path):
    data = train_data(write_shards(tmp_path, SIZES))
    opened = data.open()
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"\.tar/sample \d+: is not there any more; restore the shards, or name"
    ):
        list(opened.loader(tokenize, start_step=0, stop_step=2, rank=0, world_size=1))


def test_reading_ahead_is_spread_evenly_and_holds_two_windows_at_most(shards):
    from vlm.data.loader import SourceReader

    data = train_data(shards, stream_groups=1, streams_per_group=1, shuffle_samples=16)
    reader = SourceReader(data.open()._sources[0], rank=0, world_size=1)
    read = []
    for step in range(9):
        list(reader.slots(step))
        (stream,) = reader._open.values()
        assert len(stream._held) <= 2 * 16
        read.append(stream._next_read)
    assert read == [24, 32, 40, 48, 56, 64, 72, 72, 72]


def test_the_windows_of_a_finished_epoch_are_freed_at_once(shards):
    from vlm.data.loader import SourceReader

    reader = SourceReader(train_data(shards).open().sources[0], rank=0, world_size=1)
    finished = []
    gc.disable()  # in a long run it looks at old objects after many epochs only
    try:
        for step in range(28):
            list(reader.slots(step))
            if step in (8, 17):  # the last of an epoch
                finished += [weakref.ref(stream) for stream in reader._open.values()]
        assert len(finished) == 2 * 8
        assert all(stream() is None for stream in finished)
    finally:
        gc.enable()


def test_augmentation_is_seeded_by_place_alone(shards):
    """The same draws whichever worker makes the sample: seeds come from the order, not from a process."""
    random.seed(1)
    first = batches(train_data(shards), 0, 2)
    random.seed(2)
    torch.manual_seed(3)
    second = batches(train_data(shards), 0, 2)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
