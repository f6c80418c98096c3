"""Images per second of CPU time: the training loader beside webdataset's plain pipeline, in one process.

Both read the same shards, shuffle with the same buffer, apply the same augmentation and tokenizer and give
batches of the same shape. Rounds alternate, so that a change of the machine's speed meets both.
"""

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image

import vlm
from vlm.data import Augment, Preprocess, Source, TrainData
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


def ours(folder: Path, samples: int) -> int:
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
        seed=0,
    ).open()
    loader = data.loader(tokenize, start_step=0, stop_step=samples // BATCH, rank=0, world_size=1)
    return sum(len(batch["image"]) for batch in loader)


def plain_webdataset(folder: Path, samples: int) -> int:
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
    return sum(len(images) for images, _ in wds.WebLoader(pipeline, batch_size=None, num_workers=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"python {sys.version.split()[0]}, vlm {vlm.__version__}, webdataset {wds.__version__}", end=", ")
    print(f"torch {torch.__version__}, pillow {Image.__version__}")
    rates: dict[str, list[float]] = {"ours": [], "webdataset": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, args.samples)
        for round_ in range(args.rounds + 1):  # the first fills the page cache and is dropped
            for label, run in (("ours", ours), ("webdataset", plain_webdataset)):
                wall, cpu = time.perf_counter(), time.process_time()
                images = run(folder, args.samples)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if round_:
                    rates[label].append(images / cpu)
                    print(f"round {round_}: {label:10} {images / cpu:6.1f} images/s of CPU time", end=", ")
                    print(f"{images / wall:6.1f} by the clock")
    rates["ratio"] = [a / b for a, b in zip(rates["ours"], rates["webdataset"], strict=True)]
    for label, values in rates.items():
        print(f"{label:10} median {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
