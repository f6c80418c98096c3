"""A folder of features: unit vectors of shards, and a manifest that says what made them.

| file | what |
|---|---|
| `manifest.json` | model, preprocessing, dimension, the shards in their order and their numbers of rows |
| `<shard>.safetensors` | `features`, fp16 [rows, dim], and `broken`, int64: the rows that are zero |

A row is a sample, in the order of its shard. `complete` in the manifest is true once every file is there.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float16, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm.data.index import stem
from vlm.data.remote import PIPE
from vlm.data.tar import is_local
from vlm.errors import DataError
from vlm.files import replacing, write_json, writing

FORMAT = 1
MANIFEST = "manifest.json"
_DELETE = "delete it and embed again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """A shard, and what its file of features is called."""

    url: str
    """Absolute where it is a path."""
    name: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made the features, and which shards they are of."""

    model: dict[str, Any]
    """`sha256` of its weights, `step`, and `read_from`: where they were."""
    preprocess: dict[str, Any]
    dim: int
    bf16: bool
    shards: tuple[ShardEntry, ...]
    num_broken: int | None = None
    """Rows that are zero; None until all is there."""

    @property
    def num_rows(self) -> int:
        """Samples of all shards together."""
        return sum(shard.rows for shard in self.shards)

    def to_mapping(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format": FORMAT,
            "complete": self.num_broken is not None,
            "model": self.model,
            "preprocess": self.preprocess,
            "dim": self.dim,
            "dtype": "float16",
            "normalised": True,
            "bf16": self.bf16,
            "num_rows": self.num_rows,
            "num_broken": self.num_broken,
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all."""
        write_json(folder / MANIFEST, self.to_mapping(), indent=1)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            DataError: it cannot be understood.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format={content['format']!r}, this version of vlm reads {FORMAT}")
            return cls(
                model=dict(content["model"]),
                preprocess=dict(content["preprocess"]),
                dim=int(content["dim"]),
                bf16=bool(content["bf16"]),
                shards=tuple(ShardEntry(**shard) for shard in content["shards"]),
                num_broken=content["num_broken"],
            )
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is not the manifest of features: {error}; {_DELETE}") from error


def shard_entries(urls: Sequence[str], sizes: Sequence[int]) -> tuple[ShardEntry, ...]:
    """What the files of shards are called: as the shards are, with a number before it where two are alike."""
    names = [
        f"{n:05d}" if url.startswith(PIPE) else stem(url.rpartition("/")[2]) for n, url in enumerate(urls)
    ]
    alike = Counter(names)
    return tuple(
        ShardEntry(
            url=str(Path(url).absolute()) if is_local(url) else url,
            name=name if alike[name] == 1 else f"{number:05d}_{name}",
            rows=rows,
        )
        for number, (url, name, rows) in enumerate(zip(urls, names, sizes, strict=True))
    )


def write_features(path: Path, features: Float16[Tensor, "rows d"], broken: Int64[Tensor, "m"]) -> None:
    """Write the features of one shard, whole or not at all."""
    with writing(path, then="make room and type the command again: it goes on"), replacing(path) as draft:
        save_file({"features": features, "broken": broken}, draft)


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """A complete folder of features."""

    folder: Path
    manifest: Manifest
    digest: str
    """sha256 of the manifest: of what made the features, not of their bytes."""

    @classmethod
    def open(cls, path: str | Path, *, key: str) -> "FeatureSet":
        """Read the manifest and the header of every file.

        Args:
            key: of the configuration, for messages.

        Raises:
            DataError: the folder is incomplete, or a file is not what the manifest says.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{key}={folder} has no {MANIFEST}; name a folder that `vlm embed` wrote")
        manifest = Manifest.read(folder)
        missing = [shard.name for shard in manifest.shards if not feature_file(folder, shard).is_file()]
        if missing or manifest.num_broken is None:
            raise DataError(
                f"{key}={folder} is incomplete: {len(missing)} of {len(manifest.shards)} shards are missing; "
                "type the same `vlm embed` again, it goes on"
            )
        for shard in manifest.shards:
            num_broken_rows(folder, shard, dim=manifest.dim)
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        return cls(folder=folder, manifest=manifest, digest=digest)

    def rows(self, shard: int, start: int, stop: int) -> Float16[Tensor, "n d"]:
        """Some features of the shard with this number, on the CPU."""
        with safe_open(feature_file(self.folder, self.manifest.shards[shard]), framework="pt") as file:
            features: Tensor = file.get_slice("features")[start:stop]
            return features

    def broken(self, shard: int) -> Int64[Tensor, "m"]:
        """The rows of a shard that are zero, ascending."""
        with safe_open(feature_file(self.folder, self.manifest.shards[shard]), framework="pt") as file:
            broken: Tensor = file.get_tensor("broken")
            return broken


def feature_file(folder: Path, shard: ShardEntry) -> Path:
    """Where the features of a shard lie."""
    return folder / f"{shard.name}.safetensors"


def num_broken_rows(folder: Path, shard: ShardEntry, *, dim: int) -> int:
    """Compare the header of a file with the manifest. Returns its number of broken rows.

    Raises:
        DataError: it is damaged, or has another shape.
    """
    path = feature_file(folder, shard)
    try:
        with safe_open(path, framework="pt") as file:
            found = file.get_slice("features")
            shape, kind = found.get_shape(), found.get_dtype()
            num_broken = int(file.get_slice("broken").get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}; {_DELETE}") from error
    if shape != [shard.rows, dim] or kind != "F16":
        raise DataError(
            f"{path} holds {kind} {shape}, {MANIFEST} beside it says F16 {[shard.rows, dim]}; {_DELETE}"
        )
    return num_broken
