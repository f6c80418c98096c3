"""The nearest clusters of each sample, as sidecars of the shards."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int32
from numpy import ndarray
from torch import Tensor

from vlm.curation.kmeans import BLOCK, blocks, nearest
from vlm.data.index import is_writable, stored_sizes
from vlm.data.labels import Origin, write_sidecar
from vlm.data.sidecar import read_footer, sidecar_path
from vlm.data.tar import is_local
from vlm.errors import ConfigError, DataError
from vlm.inference.features import FeatureSet, Manifest


def label_places(manifest: Manifest, name: str, out: Path) -> list[Path]:
    """Where the labels of each shard are written: beside it, or in `out` where nothing can be added there.

    Raises:
        DataError: a shard has another number of samples now, or two shards would share a file in `out`.
    """
    _require_same_rows(manifest)
    open_folders = {folder: _takes_files(folder) for folder in {_folder(s.url) for s in manifest.shards}}
    places = [
        sidecar_path(shard.url, name, folder=None if open_folders[_folder(shard.url)] else str(out))
        for shard in manifest.shards
    ]
    place, count = Counter(places).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{count} shards are called alike and their folders cannot be written, so that all their labels "
            f"would be {place}; make the folders writable, or embed and cluster copies"
        )
    return [Path(place) for place in places]


def _folder(url: str) -> str:
    return os.path.dirname(url) if is_local(url) else ""


def _takes_files(folder: str) -> bool:
    return folder != "" and os.path.isdir(folder) and is_writable(folder)


def _require_same_rows(manifest: Manifest) -> None:
    present = [shard for shard in manifest.shards if is_local(shard.url) and os.path.isfile(shard.url)]
    for shard, size in zip(present, stored_sizes([shard.url for shard in present]), strict=True):
        if size not in (None, shard.rows):
            raise DataError(
                f"{shard.url} has {size} samples, its features are of {shard.rows}; embed it again into a "
                "new folder"
            )


def unlabelled(manifest: Manifest, places: Sequence[Path], *, made_by: str) -> list[int]:
    """The shards whose labels are not written yet.

    Raises:
        ConfigError: there are other labels of that name.
        DataError: a file of labels is damaged, or of another number of samples.
    """
    missing = []
    for number, (shard, place) in enumerate(zip(manifest.shards, places, strict=True)):
        if not place.is_file():
            missing.append(number)
            continue
        try:
            rows, said = read_footer(str(place))
            origin = Origin.of(said)
        except ValueError as error:
            raise DataError(f"{place} {error}; delete it") from error
        if origin.made_by != made_by:
            raise ConfigError(
                f"{place} holds labels of other clusters; choose another name=, or delete them if no "
                "training needs them"
            )
        if rows != shard.rows:
            raise DataError(f"{place} has labels of {rows} samples, {shard.url} has {shard.rows}; delete it")
    return missing


def write_labels(
    features: FeatureSet,
    centroids: Float[Tensor, "k d"],
    places: Sequence[Path],
    shards: Sequence[int],
    *,
    count: int,
    made_by: str,
    device: str,
    after_block: Callable[[int], object],
) -> None:
    """Write the `count` nearest clusters of each sample of the shards with these numbers."""
    nearby = centroids.to(device)
    for shard in shards:
        labels = _labels(features, nearby, shard, count, after_block)
        write_sidecar(places[shard], labels, num_classes=len(centroids), made_by=made_by)


def _labels(
    features: FeatureSet,
    centroids: Float[Tensor, "k d"],
    shard: int,
    count: int,
    after_block: Callable[[int], object],
) -> Int32[ndarray, "rows count"]:
    """Of each sample of a shard; -1 where it is broken."""
    rows = features.manifest.shards[shard].rows
    labels = np.full((rows, count), -1, dtype=np.int32)
    for block in blocks(features, [(shard, start) for start in range(0, rows, BLOCK)]):
        found = nearest(block.features[block.whole].to(centroids.device).float(), centroids, count=count)[1]
        place = block.start + torch.nonzero(block.whole).flatten().numpy()
        labels[place] = found.cpu().numpy()
        after_block(len(block.features))
    return labels
