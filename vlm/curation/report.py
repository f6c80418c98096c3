"""One HTML page about clusters, complete in itself, and the same pictures as a PNG."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from jinja2 import Environment, StrictUndefined
from numpy import ndarray
from PIL import Image, ImageDraw

from vlm import charts
from vlm.curation.kmeans import Iteration, imbalance_of
from vlm.data import Preprocess, ShardSet
from vlm.data.images import UnreadableImageError, data_uri
from vlm.data.labels import parse_sidecar
from vlm.data.samples import IMAGE_EXTENSIONS, BrokenSampleError, sample_image
from vlm.data.shards import BrokenShardError, ShardCursor
from vlm.errors import DataError
from vlm.files import replacing, writing
from vlm.inference.features import FeatureSet

logger = logging.getLogger(__name__)

CLUSTERS_SHOWN = 24
PICTURES_SHOWN = 12
"""Of each cluster, drawn at random: the nearest ones would flatter it."""
SIDE, _GAP, _LINE = 84, 4, 18

Place = tuple[int, int]
"""Shard and row."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A cluster as the page shows it."""

    cluster: int
    size: int
    strip: Image.Image | None

    @property
    def data_uri(self) -> str:
        """The pictures, for the page."""
        assert self.strip is not None
        return data_uri(self.strip)


def write_report(
    out: Path,
    features: FeatureSet,
    history: Sequence[Iteration],
    places: Sequence[Path],
    *,
    k: int,
    seed: int,
) -> Path:
    """Write `report.html` and `clusters.png` into `out`; on the main rank.

    Args:
        places: the labels of each shard.
        seed: draws the pictures of a cluster.

    Raises:
        OutputError: they cannot be written.
        DataError: labels cannot be read.
    """
    sizes = _sizes(places, k)
    shown = _spread(np.argsort(-sizes, kind="stable")[: int((sizes > 0).sum())], CLUSTERS_SHOWN)
    members = _members(places, shown, seed=seed)
    pictures = _pictures(features, sorted({place for found in members.values() for place in found}))
    sheets = [
        Sheet(
            cluster=cluster,
            size=int(sizes[cluster]),
            strip=_strip([pictures.get(p) for p in members[cluster]]),
        )
        for cluster in shown
    ]
    curve = charts.Curve(
        name="mean cosine", points=[(float(n), found.objective) for n, found in enumerate(history)]
    )
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(files("vlm.curation").joinpath("report.html.j2").read_text(encoding="utf-8"))
        .render(
            folder=out.absolute().name,
            facts=_facts(features, history, sizes),
            objective=charts.draw(curve),
            histogram=charts.draw_bars(_histogram(sizes), name="clusters by size"),
            history=list(enumerate(history)),
            sheets=sheets,
        )
    )
    path = out / "report.html"
    with writing(path), replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    with writing(out / "clusters.png"), replacing(out / "clusters.png") as draft:
        _poster(sheets).save(draft, "PNG")
    return path


def _first_labels(place: Path) -> Int64[ndarray, "rows"]:
    """The nearest cluster of each sample of a shard, -1 where it has none."""
    try:
        labels = parse_sidecar(place.read_bytes())
    except ValueError as error:
        raise DataError(f"{place} {error}; delete it and cluster again") from error
    starts = np.concatenate([[0], labels.ends[:-1]]).astype(np.int64)
    first = np.full(len(labels), -1, dtype=np.int64)
    present = labels.ends > starts
    first[present] = labels.values[starts[present]]
    return first


def _sizes(places: Sequence[Path], k: int) -> Int64[ndarray, "k"]:
    sizes = np.zeros(k, dtype=np.int64)
    for place in places:
        first = _first_labels(place)
        sizes += np.bincount(first[first >= 0], minlength=k)
    return sizes


def _spread(ordered: Int64[ndarray, "n"], wanted: int) -> list[int]:
    """At most `wanted`, evenly spaced: large, middling and small clusters."""
    wanted = min(wanted, len(ordered))
    return [int(ordered[number * len(ordered) // wanted]) for number in range(wanted)]


def _members(places: Sequence[Path], shown: Sequence[int], *, seed: int) -> dict[int, list[Place]]:
    """A few samples of each cluster at random, in their stored order."""
    drawn: dict[int, list[tuple[float, Place]]] = {cluster: [] for cluster in shown}
    for shard, place in enumerate(places):
        first = _first_labels(place)
        lot = np.random.default_rng((seed, shard)).random(len(first))
        for row in np.flatnonzero(np.isin(first, shown)).tolist():
            drawn[int(first[row])].append((float(lot[row]), (shard, row)))
        for cluster, found in drawn.items():
            drawn[cluster] = sorted(found)[:PICTURES_SHOWN]
    return {cluster: sorted(place for _, place in found) for cluster, found in drawn.items()}


def _pictures(features: FeatureSet, places: Sequence[Place]) -> dict[Place, Image.Image]:
    """The samples at these places as the tower sees them, as far as their shards can be read."""
    manifest = features.manifest
    preprocess = Preprocess.from_mapping(manifest.preprocess)
    shards = ShardSet(
        tuple(shard.url for shard in manifest.shards), tuple(shard.rows for shard in manifest.shards)
    )
    cursor = ShardCursor(shards, frozenset(IMAGE_EXTENSIONS))
    pictures: dict[Place, Image.Image] = {}
    try:
        for place in places:
            try:
                pixels = preprocess(sample_image(cursor.read(*place)))
            except (BrokenShardError, BrokenSampleError, UnreadableImageError) as error:
                logger.warning("the report lacks a picture of %s: %s", shards.urls[place[0]], error)
                continue
            pictures[place] = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).resize(
                (SIDE, SIDE)
            )
    except DataError as error:  # every further one would take as long to fail
        logger.warning("the report lacks pictures: %s", error)
    finally:
        cursor.close()
    return pictures


def _strip(pictures: Sequence[Image.Image | None]) -> Image.Image | None:
    found = [picture for picture in pictures if picture is not None]
    if not found:
        return None
    strip = Image.new("RGB", (len(found) * (SIDE + _GAP) - _GAP, SIDE), "white")
    for number, picture in enumerate(found):
        strip.paste(picture, (number * (SIDE + _GAP), 0))
    return strip


def _poster(sheets: Sequence[Sheet]) -> Image.Image:
    """All clusters of the page below each other."""
    width = PICTURES_SHOWN * (SIDE + _GAP) + _GAP
    poster = Image.new("RGB", (width, len(sheets) * (SIDE + _LINE + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(poster)
    for number, sheet in enumerate(sheets):
        top = _GAP + number * (SIDE + _LINE + _GAP)
        draw.text((_GAP, top), f"cluster {sheet.cluster}: {sheet.size:,} samples", fill="black")
        if sheet.strip is not None:
            poster.paste(sheet.strip, (_GAP, top + _LINE))
    return poster


def _histogram(sizes: Int64[ndarray, "k"]) -> list[tuple[str, int]]:
    """Clusters by size, each bar twice as wide as the one before it."""
    exponents = np.where(sizes > 0, np.log2(np.maximum(sizes, 1)).astype(np.int64) + 1, 0)
    counts = np.bincount(exponents)
    first = int(np.flatnonzero(counts)[0])
    return [
        (f"{1 << exponent - 1:,}" if exponent else "0", int(counts[exponent]))
        for exponent in range(first, len(counts))
    ]


def _facts(features: FeatureSet, history: Sequence[Iteration], sizes: Int64[ndarray, "k"]) -> dict[str, str]:
    manifest = features.manifest
    filled = sizes[sizes > 0]
    return {
        "Samples": f"{int(sizes.sum()):,} in {len(manifest.shards):,} shards, {manifest.num_broken:,} broken",
        "Features": f"{manifest.dim} dimensions, of {manifest.model['read_from']}",
        "Clusters": f"{len(sizes):,}, of which {int((sizes == 0).sum()):,} are empty",
        "Sizes": f"smallest {filled.min():,}, median {int(np.median(filled)):,}, largest {filled.max():,}",
        "Imbalance": f"{imbalance_of(sizes):.3f} (1 where all are equal)",
        "Mean cosine": f"{history[-1].objective:.4f} with the nearest centroid",
        "Iterations": f"{len(history) - 1}, {sum(i.empty - i.left_empty for i in history):,} empty clusters "
        f"repaired, {sum(i.relocated for i in history):,} relocated",
    }
