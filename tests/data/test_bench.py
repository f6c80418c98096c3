from pathlib import Path

import pytest
from small_shards import image_bytes, tokenize, train_data, write_shards

from vlm.broken import Cause
from vlm.data import Source
from vlm.data.shards import ShardCursor
from vlm.data.tools import bench as bench_module
from vlm.data.tools.bench import COLLATE, DECODE, READ, STAGES, TOKENIZE, TRANSFORM, Bench, advice, bench
from vlm.errors import DataError


class StoppedClock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def slowed(self, function, seconds: float):
        def slow(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return slow


@pytest.fixture
def clock(monkeypatch) -> StoppedClock:
    """The stages by a clock that stands still; the loader, which would wait for it, left out."""
    stopped = StoppedClock()
    monkeypatch.setattr(bench_module, "time", stopped)
    monkeypatch.setattr(bench_module, "_loader_rate", lambda *_, **__: 1.0)
    return stopped


@pytest.mark.parametrize("stage", [READ, DECODE, TRANSFORM, TOKENIZE, COLLATE])
def test_time_is_booked_on_the_stage_that_takes_it(
    tmp_path: Path, monkeypatch, clock: StoppedClock, stage: str
) -> None:
    data = train_data(write_shards(tmp_path, [40]))
    places = {
        READ: (ShardCursor, "read"),
        DECODE: (bench_module, "sample_image"),
        TRANSFORM: (type(data.augment), "__call__"),
        COLLATE: (bench_module.torch, "stack"),
    }
    if stage in places:
        owner, name = places[stage]
        monkeypatch.setattr(owner, name, clock.slowed(getattr(owner, name), 0.005))
    slow_tokenize = clock.slowed(tokenize, 0.005 if stage == TOKENIZE else 0)
    found = bench(data, data.open(), slow_tokenize, seconds=1.0)
    assert found.samples == 40
    per_sample = 5 / 40 if stage in (TOKENIZE, COLLATE) else 5  # once a batch of 64
    assert found.stages == pytest.approx(dict.fromkeys(STAGES, 0.0) | {stage: per_sample})


def test_reading_ends_after_its_time(tmp_path: Path, monkeypatch, clock: StoppedClock) -> None:
    monkeypatch.setattr(ShardCursor, "read", clock.slowed(ShardCursor.read, 0.3))
    data = train_data(write_shards(tmp_path, [40]))
    assert bench(data, data.open(), tokenize, seconds=1.0).samples == 4


def test_pixels_are_decoded_on_decodes_account(tmp_path: Path) -> None:
    large = {"jpg": image_bytes((1, 2, 3), size=(4000, 4000), kind="JPEG"), "txt": b"x"}
    names = [f"{n:06d}" for n in range(16)]
    data = train_data(write_shards(tmp_path, [16], change=dict.fromkeys(names, large)), augment=None)
    found = bench(data, data.open(), tokenize, seconds=0.3)
    assert found.slowest == DECODE
    assert found.image_side == 4000
    assert "store smaller ones" in advice(found, data)


def test_broken_samples_are_passed_over(tmp_path: Path, clock: StoppedClock) -> None:
    change = {"000003": {"png": b"", "txt": b"x"}, "000004": {"png": image_bytes((1, 2, 3))}}
    data = train_data(write_shards(tmp_path, [20], change=change), global_batch_size=4, shuffle_samples=160)
    assert bench(data, data.open(), tokenize, seconds=0.1).samples == 18


def test_samples_of_every_source_are_taken(tmp_path: Path, clock: StoppedClock) -> None:
    mix = {"web": Source(shards=write_shards(tmp_path / "b", [40]), captions="json.caption_en", share=0.5)}
    data = train_data(write_shards(tmp_path / "a", [40]), mix=mix)
    assert bench(data, data.open(), tokenize, seconds=0.1).samples == 80


def test_the_loader_is_measured_with_its_workers(tmp_path: Path) -> None:
    data = train_data(write_shards(tmp_path, [40]), num_workers=2)
    assert bench(data, data.open(), tokenize, seconds=0.1).loader_rate > 0


def test_nothing_whole_is_an_error(tmp_path: Path, monkeypatch, clock: StoppedClock) -> None:
    data = train_data(write_shards(tmp_path, [40]))
    train_set = data.open()
    monkeypatch.setattr(bench_module, "sample_image", refuse)
    with pytest.raises(DataError, match="none of 40 samples is whole"):
        bench(data, train_set, tokenize, seconds=0.1)


def refuse(_: object) -> None:
    raise bench_module.BrokenSampleError("broken", Cause.UNREADABLE_IMAGE)


@pytest.mark.parametrize(
    ("cores", "workers", "groups", "expected"),
    [
        (8, 2, 4, "data.num_workers=4 would use more of the 8 cores"),
        (8, 4, 4, "data.stream_groups=8 data.num_workers=8 would use all 8 cores"),
        (2, 2, 4, "data.num_workers=2 uses all 2 cores"),
    ],
)
def test_advice_names_numbers_that_divide(
    tmp_path: Path, monkeypatch, cores, workers, groups, expected
) -> None:
    monkeypatch.setattr(bench_module, "number_of_workers", lambda _: cores)
    data = train_data("x.tar", num_workers=workers, stream_groups=groups)
    stages = dict.fromkeys(STAGES, 0.1) | {TRANSFORM: 3.0}
    found = Bench(stages=stages, samples=1, image_side=8, loader_rate=1000.0)
    text = advice(found, data)
    assert expected in text
    assert "transform, 88% of a core's time; data.augment.color_jitter=0 and data.preprocess.interp" in text
