"""Folders of features as `vlm embed` writes them, without a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vlm.inference.features import FeatureSet, Manifest, feature_file, shard_entries, write_features

PREPROCESS = {
    "image_size": 16,
    "background": [255, 255, 255],
    "resize_mode": "squash",
    "interpolation": "box",
}


def planted(
    samples: int, k: int, dim: int, *, noise: float, seed: int = 0
) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors (fp16) about k random directions, and the direction of each."""
    rng = np.random.default_rng(seed)
    centres = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((k, dim))), dim=1)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, samples - k)])
    x = centres[labels] + torch.from_numpy(rng.standard_normal((samples, dim))) * (noise / dim**0.5)
    return torch.nn.functional.normalize(x, dim=1).half(), labels


def write_folder(
    folder: Path,
    features: torch.Tensor,
    sizes: Sequence[int],
    *,
    broken: Sequence[int] = (),
    urls: Sequence[str] | None = None,
) -> Path:
    """The rows of `features` as shards of these sizes; those of `broken` become zero."""
    folder.mkdir(parents=True)
    urls = urls or [f"{folder.parent}/gone/{number:05d}.tar" for number in range(len(sizes))]
    shards = shard_entries(urls, sizes)
    features = features.clone()
    features[list(broken)] = 0
    start = 0
    for shard in shards:
        own = [row - start for row in broken if start <= row < start + shard.rows]
        part = features[start : start + shard.rows].clone()
        write_features(feature_file(folder, shard), part, torch.tensor(own, dtype=torch.int64))
        start += shard.rows
    Manifest(
        model={"sha256": "0" * 64, "step": 0, "read_from": "planted"},
        preprocess=PREPROCESS,
        dim=features.shape[1],
        bf16=False,
        shards=shards,
        num_broken=len(broken),
    ).write(folder)
    return folder


def opened(folder: Path) -> FeatureSet:
    return FeatureSet.open(folder, key="features")
