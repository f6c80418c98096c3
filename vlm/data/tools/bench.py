"""Where the time of loading goes: each stage on one core, and the loader as training uses it."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from statistics import median

import torch
from PIL import Image

from vlm.data.images import UnreadableImageError
from vlm.data.loader import OrderedSource, Tokenize
from vlm.data.samples import BrokenSampleError, decode_record, sample_image
from vlm.data.tar import RawSample
from vlm.data.tools.processes import number_of_workers
from vlm.data.train import TrainData, TrainSet
from vlm.errors import DataError

READ, DECODE, TRANSFORM, TOKENIZE, COLLATE = STAGES = ("read", "decode", "transform", "tokenize", "collate")
_MAX_SAMPLES = 2048
_BATCH = 64
_ENDLESS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was measured."""

    stages: dict[str, float]
    """Milliseconds a sample takes on one core."""
    samples: int
    image_side: int
    """Median short side of the stored images, in pixels."""
    loader_rate: float
    """Images/s of the loader with all its workers."""

    @property
    def core_rate(self) -> float:
        """Images/s of one core that does all stages."""
        return 1000 / sum(self.stages.values())

    @property
    def slowest(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=lambda name: self.stages[name])


def bench(data: TrainData, train_set: TrainSet, tokenizer: Tokenize | None, *, seconds: float) -> Bench:
    """Take the stages one after another over samples in the order of training, then run the loader.

    The loader is that of one of `data.streams_per_group` ranks: so batches are small, and the first one soon
    there.

    Args:
        seconds: for reading, for the other stages, and for the loader, each.

    Raises:
        DataError: no sample is whole.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = _Clock()
    samples = _read(train_set, clock, seconds)
    done = 0
    sides: list[int] = []
    deadline = time.perf_counter() + seconds
    for start in range(0, len(samples), _BATCH):
        if time.perf_counter() < deadline or not done:
            done += _make_batch(samples[start : start + _BATCH], data, tokenizer, clock, sides)
    torch.set_num_threads(threads)
    if not done:
        raise DataError(f"none of {len(samples)} samples is whole; vlm shards check says why")
    counts = {name: len(samples) if name == READ else done for name in STAGES}
    return Bench(
        stages={name: clock.seconds[name] * 1000 / counts[name] for name in STAGES},
        samples=done,
        image_side=int(median(sides)),
        loader_rate=_loader_rate(train_set, tokenizer, num_workers=data.num_workers, seconds=seconds),
    )


def advice(found: Bench, data: TrainData) -> str:
    """What limits the loader, and which key to change."""
    share = found.stages[found.slowest] * found.core_rate / 1000
    limit = f"bottleneck: {found.slowest}, {share:.0%} of a core's time; {_remedy(found, data)}"
    return f"{limit}\n{_workers(found, data)}"


def _remedy(found: Bench, data: TrainData) -> str:
    if found.slowest == READ:
        return "keep the shards on a faster disk, as plain .tar with an index (vlm shards index)"
    if found.slowest == DECODE:
        side = data.preprocess.image_size
        stored = f"images have {found.image_side} pixels on the short side, data.preprocess.image_size={side}"
        return f"{stored}{': store smaller ones' if found.image_side >= 2 * side else ''}"
    if found.slowest == TRANSFORM:
        cheaper = ["data.augment.color_jitter=0"] if data.augment and data.augment.color_jitter else []
        if data.preprocess.interpolation in ("bicubic", "lanczos"):
            cheaper.append("data.preprocess.interpolation=bilinear")
        return f"{' and '.join(cheaper)} would be cheaper" if cheaper else "its settings are the cheapest"
    return "images are tiny, or captions long"


def _workers(found: Bench, data: TrainData) -> str:
    cores, workers = number_of_workers(None), data.num_workers
    fitting = [n for n in range(workers + 1, cores + 1) if data.stream_groups % n == 0]
    if fitting:
        return f"data.num_workers={fitting[-1]} would use more of the {cores} cores"
    if workers < cores:
        return f"data.stream_groups={cores} data.num_workers={cores} would use all {cores} cores"
    held_up = found.loader_rate < 0.6 * cores * found.core_rate
    hint = "; they reach less than they could: is the machine busy, or the disk?" if held_up else ""
    return f"data.num_workers={workers} uses all {cores} cores{hint}"


class _Clock:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def _read(train_set: TrainSet, clock: _Clock, seconds: float) -> list[tuple[RawSample, OrderedSource]]:
    """Samples of every source in its share, from the beginning of a stream."""
    samples = []
    batch_size = sum(source.order.batch_size for source in train_set.sources)
    for source in train_set.sources:
        share = source.order.batch_size / batch_size
        deadline = time.perf_counter() + seconds * share
        cursor = source.cursor()
        for shard, row in islice(_stream(source), max(1, round(_MAX_SAMPLES * share))):
            with clock.on(READ):
                samples.append((cursor.read(shard, row), source))
            if time.perf_counter() > deadline:
                break
        cursor.close()
    random.Random(0).shuffle(samples)
    return samples


def _stream(source: OrderedSource) -> Iterator[tuple[int, int]]:
    """Shard and row of the samples of the first epoch, stream by stream."""
    order = source.order
    for group, stream in product(range(order.num_groups), range(order.streams_per_group)):
        for run in order.runs(epoch=0, group=group, stream=stream):
            for row in range(run.start, run.stop):
                yield run.shard, row


def _make_batch(
    samples: Sequence[tuple[RawSample, OrderedSource]],
    data: TrainData,
    tokenizer: Tokenize | None,
    clock: _Clock,
    sides: list[int],
) -> int:
    """What the loader does to a batch; returns how many of the samples are whole."""
    images, captions = [], []
    for number, (raw, source) in enumerate(samples):
        rng = random.Random(number)
        try:
            with clock.on(TOKENIZE):
                caption = source.caption_of(decode_record(raw), rng=rng)
            with clock.on(DECODE):
                image = sample_image(raw)
            sides.append(min(image.size))
            before = clock.seconds[DECODE]
            start = time.perf_counter()
            _time_decoding(image, clock)
            pixels = data.augment(image, data.preprocess, rng=rng) if data.augment else data.preprocess(image)
            spent = time.perf_counter() - start
            clock.seconds[TRANSFORM] += spent - (clock.seconds[DECODE] - before)
            images.append(pixels)
            captions.append(caption)
        except (BrokenSampleError, UnreadableImageError):
            continue
    if images:
        if tokenizer is not None:
            with clock.on(TOKENIZE):
                tokenizer(captions)
        with clock.on(COLLATE):
            torch.stack(images)
    return len(images)


def _time_decoding(image: Image.Image, clock: _Clock) -> None:
    """Have the image's own `load` timed: which scale it decodes at is decided by what will be cut from it."""
    load = image.load

    def timed() -> object:
        with clock.on(DECODE):
            return load()

    image.load = timed  # type: ignore[method-assign, assignment]


def _loader_rate(
    train_set: TrainSet, tokenizer: Tokenize | None, *, num_workers: int, seconds: float
) -> float:
    """Images/s, once what the workers prepared ahead of the first request is used up."""
    ranks = train_set.sources[0].order.streams_per_group
    loader = train_set.loader(tokenizer, start_step=0, stop_step=_ENDLESS, rank=0, world_size=ranks)
    batches = iter(loader)
    for _ in range(1 + 2 * num_workers):
        next(batches)
    images, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not images:
        images += len(next(batches)["image"])
    return images / spent
