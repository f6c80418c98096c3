"""Seconds to the first batches of an epoch of 100,000 samples, begun at 0 % and at 90 %, in turn."""

import argparse
import gzip
import io
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vlm
from vlm.data import Augment, Preprocess, Remote, ShardCache, Source, TrainData, TrainSet
from vlm.data.writer import ShardWriter

SHARD, PICTURES, SIDE, GROUPS = 1000, 500, 64, 4
PREPROCESS = Preprocess(
    image_size=SIDE, background=[255, 255, 255], resize_mode="shortest", interpolation="bicubic"
)
AUGMENT = Augment(crop_scale=[0.9, 1.0], crop_ratio=[0.75, 1.3333], color_jitter=0.0, flip_probability=0.0)


def write_shards(folder: Path, samples: int) -> None:
    """Plain tars with their index in `tar`, the same compressed in `tar.gz`."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
            buffer, "JPEG", quality=75
        )
        pictures.append(buffer.getvalue())
    with ShardWriter(folder / "tar", prefix="", max_samples=SHARD) as writer:
        for number in range(samples):
            members = {"jpg": pictures[number % PICTURES], "txt": f"picture number {number}".encode()}
            writer.write(f"{number:06d}", members)
    (folder / "tar.gz").mkdir()
    for tar in (folder / "tar").glob("*.tar"):
        (folder / "tar.gz" / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes(), compresslevel=6))


def tokenize(captions: list[str]) -> torch.Tensor:
    rows = [torch.tensor(list(caption.encode())) for caption in captions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def opened(shards: str, workers: int) -> TrainSet:
    """Everything but the size of the pictures as `configs/data` has it."""
    return TrainData(
        train=Source(shards=shards, captions="txt"),
        mix={},
        preprocess=PREPROCESS,
        augment=AUGMENT,
        global_batch_size=256,
        stream_groups=GROUPS,
        streams_per_group=8,
        shuffle_samples=16384,
        num_workers=workers,
        max_broken_share=0.05,
        remote=Remote(timeout_s=60, retries_s=300),
        cache=ShardCache(folder=None, max_gib=100),
        seed=0,
    ).open()


def seconds_to_batches(data: TrainSet, share: float) -> tuple[float, float]:
    """To the first batch, and to the one with which every group of streams is open.

    From making the loader on, as training does after it has opened the data.
    """
    step = int(share * data.batches_per_epoch)
    start = time.perf_counter()
    loader = data.loader(tokenize, start_step=step, stop_step=step + 100, rank=0, world_size=1)
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(GROUPS - 1):
        next(batches)
    spent = time.perf_counter() - start
    batches.close()
    return first, spent


def report(label: str, pairs: list[tuple[float, float]]) -> None:
    texts = [
        f"{statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})"
        for values in zip(*pairs, strict=True)
    ]
    print(f"{label:<32}first batch {texts[0]:<26} batch {GROUPS} {texts[1]}", flush=True)


def main() -> None:
    """Print medians and ranges over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"python {platform.python_version()}, vlm {vlm.__version__}, torch {torch.__version__}", end=", ")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, args.samples)
        for kind, workers in [("tar", 0), ("tar", 2), ("tar.gz", 0), ("tar.gz", 2)]:
            data = opened(f"{folder}/{kind}/*.{kind}", workers)
            seconds_to_batches(data, 0.9)  # fills caches
            spent: dict[float, list[tuple[float, float]]] = {0.0: [], 0.9: []}
            for number in range(args.rounds):
                for share in sorted(spent, reverse=bool(number % 2)):
                    spent[share].append(seconds_to_batches(data, share))
            differences = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(*spent.values(), strict=True)]
            report(f".{kind}, {workers} workers, at 0 %", spent[0.0])
            report(f".{kind}, {workers} workers, at 90 %", spent[0.9])
            report(f".{kind}, {workers} workers, difference", differences)


if __name__ == "__main__":
    main()
