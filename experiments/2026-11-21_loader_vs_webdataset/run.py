"""Images per second of CPU time: the training loader beside webdataset's plain pipeline, in one process.

Both read the same shards, shuffle with the same buffer, apply the same augmentation and tokenizer and give
batches of the same shape.
"""

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image

import vlm
from vlm.data import Augment, Preprocess, Remote, ShardCache, Source, TrainData
from vlm.data.writer import ShardWriter

BATCH, SHUFFLE = 64, 512
PREPROCESS = Preprocess(
    image_size=224, background=[255, 255, 255], resize_mode="shortest", interpolation="bicubic"
)
AUGMENT = Augment(crop_scale=[0.5, 1.0], crop_ratio=[0.75, 1.3333], color_jitter=0.0, flip_probability=0.5)


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG with the smooth areas, edges and grain of a photo, short side 256."""
    size = (int(rng.integers(256, 385)), 256) if rng.random() < 0.5 else (256, int(rng.integers(256, 385)))
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    rough = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BILINEAR
    )
    pixels = np.asarray(Image.blend(smooth, rough, 0.25)) + rng.normal(0, 4, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shards(folder: Path, samples: int) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(folder, prefix="", max_samples=256) as writer:
        for number in range(samples):
            caption = f"a picture with the number {number}"
            writer.write(f"{number:06d}", {"jpg": photo(rng), "txt": caption.encode()})


def tokenize(captions: list[str]) -> torch.Tensor:
    rows = [torch.tensor(list(caption.encode())) for caption in captions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def ours(folder: Path, samples: int) -> Iterator[int]:
    """Batch sizes of the training loader over one epoch."""
    data = TrainData(
        train=Source(shards=f"{folder}/*.tar", captions="txt"),
        mix={},
        preprocess=PREPROCESS,
        augment=AUGMENT,
        global_batch_size=BATCH,
        stream_groups=1,
        streams_per_group=4,
        shuffle_samples=SHUFFLE,
        num_workers=0,
        max_broken_share=0.0,
        remote=Remote(timeout_s=60.0, retries_s=300.0),
        cache=ShardCache(folder=None, max_gib=100.0),
        seed=0,
    ).open()
    loader = data.loader(tokenize, start_step=0, stop_step=samples // BATCH, rank=0, world_size=1)
    return (len(batch["image"]) for batch in loader)


def plain_webdataset(folder: Path, samples: int) -> Iterator[int]:
    """Batch sizes of webdataset's pipeline over one epoch."""
    rng = random.Random(0)

    def collate(rows: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([image for image, _ in rows]), tokenize([caption for _, caption in rows])

    pipeline = (
        wds.WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=100)
        .shuffle(SHUFFLE)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(lambda image: AUGMENT(image, PREPROCESS, rng=rng), lambda caption: caption)
        .batched(BATCH, collation_fn=collate, partial=False)
    )
    return (len(images) for images, _ in wds.WebLoader(pipeline, batch_size=None, num_workers=0))


def race(folder: Path, samples: int, *, ours_first: bool) -> tuple[float, float]:
    """Images per second of both, taking batches in turn: a change of the machine's speed meets both."""
    runs = {"ours": ours(folder, samples), "webdataset": plain_webdataset(folder, samples)}
    images, seconds = dict.fromkeys(runs, 0), dict.fromkeys(runs, 0.0)
    for _ in range(samples // BATCH):
        for label in runs if ours_first else reversed(runs):
            start = time.process_time()
            images[label] += next(runs[label])
            seconds[label] += time.process_time() - start
    return images["ours"] / seconds["ours"], images["webdataset"] / seconds["webdataset"]


def main() -> None:
    """Print the rates of each round and their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"python {sys.version.split()[0]}, vlm {vlm.__version__}, webdataset {wds.__version__}", end=", ")
    print(f"torch {torch.__version__}, pillow {Image.__version__}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, args.samples)
        race(folder, args.samples, ours_first=True)  # fills the page cache
        for number in range(args.rounds):
            a, b = race(folder, args.samples, ours_first=number % 2 == 0)
            rows.append((a, b, a / b))
            print(f"round {number + 1}: ours {a:6.1f}, webdataset {b:6.1f} images/s, ratio {a / b:.3f}")
    for label, values in zip(("ours", "webdataset", "ratio"), zip(*rows, strict=True), strict=True):
        print(f"{label}: median {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
