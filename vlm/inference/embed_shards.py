"""Features of shards, written as they are computed; whatever ends the work, it goes on where it was."""

import dataclasses
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from vlm.data import Preprocess, ShardSet, open_shards
from vlm.data.pictures import PictureBatch, picture_loader
from vlm.distributed import ControlGroup, Topology, naming_lost_ranks
from vlm.errors import ConfigError, DataError
from vlm.files import remove_drafts, writing
from vlm.inference.checkpoint import WEIGHTS, latest_checkpoint, read_description
from vlm.inference.features import (
    MANIFEST,
    Manifest,
    ShardEntry,
    feature_file,
    num_broken_rows,
    shard_entries,
    write_features,
)
from vlm.inference.load import load
from vlm.models import ImageTowerSpec
from vlm.models.image_tower import TimmTower

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 20  # of broken samples, on each rank; all are counted
_GO_ON = "the shards that are written stay; type the same command again, it goes on"


@dataclass(frozen=True, kw_only=True)
class PictureTower:
    """What makes a picture a unit vector."""

    encode: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
    preprocess: Preprocess
    dim: int
    device: torch.device
    identity: dict[str, Any]
    """`sha256` of its weights, `step`, and `read_from`."""

    @classmethod
    def of_run(cls, path: str | Path, *, device: str) -> "PictureTower":
        """The image tower and projection of a run or a checkpoint.

        Raises:
            CheckpointError: as `load` does.
        """
        checkpoint = latest_checkpoint(path)
        description, loaded = read_description(checkpoint), load(checkpoint, device=device)
        return cls(
            encode=loaded.model.encode_image,
            preprocess=loaded.preprocess,
            dim=description.model.embed_dim,
            device=torch.device(device),
            identity={
                "sha256": description.files[WEIGHTS]["sha256"],
                "step": description.step,
                "read_from": str(checkpoint.absolute()),
            },
        )

    @classmethod
    def of_timm(cls, spec: ImageTowerSpec, preprocess: Preprocess, *, device: str) -> "PictureTower":
        """A timm model with its pretrained weights, without projection.

        Raises:
            ConfigError, CheckpointError: as `TimmTower` does; or no weights are named.
        """
        if spec.pretrained is False:
            raise ConfigError(
                "model.image.pretrained=false makes features of random weights; set it to true for timm's, "
                "or to a file, or name a checkpoint by run="
            )
        tower = TimmTower(spec).to(device).eval()
        return cls(
            encode=lambda images: nn.functional.normalize(tower(images).float(), dim=-1),
            preprocess=preprocess,
            dim=tower.width,
            device=torch.device(device),
            identity={"sha256": _digest(tower), "step": None, "read_from": f"timm: {spec.name}"},
        )


def _digest(module: nn.Module) -> str:
    """sha256 of names and values of everything that a module would save."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def embed_shards(
    tower: PictureTower,
    shards: str | Sequence[str],
    out: Path,
    topology: Topology,
    *,
    batch_size: int,
    num_workers: int,
    bf16: bool,
) -> Manifest:
    """Write the features of shards into the folder `out`; every rank calls it and takes some of the shards.

    A batch never holds samples of two shards, so that neither the number of ranks nor an interruption
    changes a byte. What is written is not computed again.

    Args:
        shards: patterns.
        batch_size: rows of one forward.
        num_workers: processes of this rank that decode pictures.
        bf16: autocast to bfloat16.

    Raises:
        ConfigError: `out` holds features of another model, preprocessing or data.
        DataError: a shard cannot be read, or the model's features are not finite.
        LostRankError: another rank ended.
    """
    control = ControlGroup()
    with naming_lost_ranks(_GO_ON):
        shard_set = control.first_rank_does(lambda: open_shards(shards, key="data.shards"))
        planned = Manifest(
            model=tower.identity,
            preprocess=tower.preprocess.to_mapping(),
            dim=tower.dim,
            bf16=bf16,
            shards=shard_entries(shard_set.urls, shard_set.sizes),
        )
        manifest = control.first_rank_does(lambda: _begin(out, planned))
        pending = control.first_rank_does(lambda: _pending(out, manifest))
    own = pending[topology.rank :: topology.world_size]
    loader = picture_loader(shard_set, own, tower.preprocess, batch_size=batch_size, num_workers=num_workers)
    with tqdm(
        desc="embedding pictures" if topology.world_size == 1 else "embedding rank 0's pictures",
        total=sum(shard_set.sizes[shard] for shard in own),
        unit="picture",
        leave=False,
        disable=not (topology.is_main and sys.stderr.isatty()),
    ) as bar:
        _write_shards(_encoded(tower, loader, bf16=bf16, bar=bar), manifest, own, out, shard_set)
    with naming_lost_ranks(_GO_ON):
        control.gather(None)  # until all have written theirs
        return control.first_rank_does(lambda: _finish(out, manifest))


def _begin(out: Path, planned: Manifest) -> Manifest:
    """The manifest in `out`, where it is of the same work; else the planned one, written."""
    if not (out / MANIFEST).is_file():
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            remove_drafts(out)
            if any(out.iterdir()):
                raise ConfigError(f"out={out} is not empty and holds no features; name a new folder")
            planned.write(out)
        return planned
    remove_drafts(out)
    found = Manifest.read(out)
    _require_same(out, found, planned)
    return found


def _require_same(out: Path, found: Manifest, planned: Manifest) -> None:
    for what, there, asked in (
        ("model", _named(found.model), _named(planned.model)),
        ("preprocessing", found.preprocess, planned.preprocess),
        ("dimension", found.dim, planned.dim),
        ("precision", _precision(found), _precision(planned)),
        ("data", _of(found.shards), _of(planned.shards)),
    ):
        if there != asked:
            raise ConfigError(
                f"out={out} holds features of another {what}: {_short(there)}, asked for was "
                f"{_short(asked)}; ask for the same, or name a new folder"
            )


def _named(model: dict[str, Any]) -> str:
    return f"sha256 {model['sha256'][:12]}, step {model['step']}"


def _precision(manifest: Manifest) -> str:
    return "bf16=true" if manifest.bf16 else "bf16=false"


def _of(shards: Sequence[ShardEntry]) -> str:
    """Shards by name and rows: they may have been moved, or be named from another folder."""
    listed = [[shard.url.rpartition("/")[2], shard.rows] for shard in shards]
    digest = hashlib.sha256(repr(listed).encode()).hexdigest()
    return f"{sum(shard.rows for shard in shards)} samples in {len(shards)} shards ({digest[:12]})"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _pending(out: Path, manifest: Manifest) -> list[int]:
    """The numbers of the shards that have no file yet."""
    return [n for n, shard in enumerate(manifest.shards) if not feature_file(out, shard).is_file()]


def _encoded(
    tower: PictureTower, loader: Any, *, bf16: bool, bar: Any
) -> Iterator[tuple[PictureBatch, Tensor]]:
    """Each batch with its features: fp16, on the CPU, zero where the picture is broken."""
    with torch.inference_mode(), torch.autocast(tower.device.type, torch.bfloat16, enabled=bf16):
        for batch in loader:
            vectors = tower.encode(batch.images.to(tower.device, non_blocking=True)).float()
            if not torch.isfinite(vectors).all():
                raise DataError(
                    f"the model's features of samples {batch.start} and following are not finite; "
                    "its weights are broken, or bf16=true is too coarse for them"
                )
            features = vectors.half().cpu()
            features[[row - batch.start for row in batch.broken]] = 0
            yield batch, features
            bar.update(len(features))


def _write_shards(
    encoded: Iterator[tuple[PictureBatch, Tensor]],
    manifest: Manifest,
    own: Sequence[int],
    out: Path,
    shards: ShardSet,
) -> None:
    left = _MAX_WARNINGS
    for shard in own:
        entry = manifest.shards[shard]
        features = torch.zeros(entry.rows, manifest.dim, dtype=torch.float16)
        broken: list[int] = []
        end = 0
        while end < shards.sizes[shard]:
            batch, vectors = next(encoded)
            end = batch.start + len(vectors)
            features[batch.start : end] = vectors
            broken += batch.broken
            for sample in list(batch.broken.values())[:left]:
                left -= 1
                logger.warning(
                    "the features of %s/%s are zero: %s%s",
                    sample.shard,
                    sample.key,
                    sample.reason,
                    "" if left else "; further ones are counted, not named",
                )
        write_features(feature_file(out, entry), features, torch.tensor(broken, dtype=torch.int64))


def _finish(out: Path, manifest: Manifest) -> Manifest:
    """Check every file, count broken samples and complete the manifest, if it is not complete yet."""
    num_broken = sum(num_broken_rows(out, shard, dim=manifest.dim) for shard in manifest.shards)
    complete = dataclasses.replace(manifest, num_broken=num_broken)
    if complete != manifest:
        complete.write(out)
    return complete
