"""Shards of tiny images written with the standard library, and a tokenizer that needs no training."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from vlm.data import Augment, Preprocess, Remote, ShardCache, Source, TrainData

PREPROCESS = Preprocess(
    image_size=8, background=[255, 255, 255], resize_mode="shortest", interpolation="bicubic"
)
REMOTE = Remote(timeout_s=5.0, retries_s=10.0)
AUGMENT = Augment(crop_scale=[0.5, 1.0], crop_ratio=[0.75, 1.3333], color_jitter=0.2, flip_probability=0.5)


def image_bytes(color, *, size=(8, 8), mode="RGB", kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def sample(number: int) -> dict[str, bytes]:
    color = (number % 256, number // 256, 7)
    record = {
        "caption_en": f"number {number}",
        "caption_zh": [f"第{number}号", f"编号{number}"],
        "id": number,
    }
    return {
        "png": image_bytes(color),
        "txt": f"caption {number}".encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
        "cls": str(number % 10).encode(),
    }


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]], *, form=tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "w:gz" if path.name.endswith(("gz", "tgz")) else "w"
    with tarfile.open(path, mode, format=form) as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def write_shards(folder: Path, sizes: Sequence[int], *, suffix="tar", first=0, change=None) -> str:
    """Shards 00000, 00001, … of samples numbered on through all of them; the pattern that names them."""
    number = first
    for shard, size in enumerate(sizes):
        samples = {f"{n:06d}": sample(n) for n in range(number, number + size)}
        for key, members in (change or {}).items():
            if key in samples:
                samples[key] = members
        write_tar(folder / f"{shard:05d}.{suffix}", samples)
        number += size
    return f"{folder}/{{00000..{len(sizes) - 1:05d}}}.{suffix}"


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    rows = [torch.tensor(list(caption.encode()), dtype=torch.int64) for caption in captions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def train_data(shards, **changes) -> TrainData:
    values = {
        "train": Source(shards=shards, captions="txt"),
        "mix": {},
        "preprocess": PREPROCESS,
        "augment": AUGMENT,
        "global_batch_size": 8,
        "stream_groups": 2,
        "streams_per_group": 4,
        "shuffle_samples": 32,
        "num_workers": 0,
        "max_broken_share": 1.0,
        "remote": REMOTE,
        "cache": ShardCache(folder=None, max_gib=1.0),
        "seed": 0,
    }
    return TrainData(**{**values, **changes})
