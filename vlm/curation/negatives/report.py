"""One HTML page about negatives, complete in itself: what filters dropped, and some samples to read."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from vlm.curation.negatives.captions import captions_of
from vlm.curation.negatives.filters import KEPT, NOTHING
from vlm.curation.negatives.tally import ShardCounts
from vlm.data import ShardSet
from vlm.data.images import UnreadableImageError, data_uri, thumbnail
from vlm.data.negatives import Negative, parse_negatives
from vlm.data.samples import IMAGE_EXTENSIONS, BrokenSampleError, decode_record, members_of, sample_image
from vlm.data.shards import BrokenShardError, ShardCursor
from vlm.data.tar import RawSample
from vlm.errors import DataError
from vlm.files import replacing, write_json, writing

logger = logging.getLogger(__name__)

SAMPLES_SHOWN = 40
SIDE = 160


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A sample as the page shows it."""

    key: str
    picture: str | None
    """A data URI."""
    captions: list[tuple[str, list[Negative]]]


def write_report(
    folder: Path,
    shards: ShardSet,
    places: Sequence[Path],
    counts: ShardCounts,
    *,
    name: str,
    seed: int,
    fields: Sequence[str],
) -> Path:
    """Write `report.html` and `report.json` into a folder.

    Args:
        places: the negatives of each shard.
        name: of the maker.
        seed: draws the samples that are shown.

    Raises:
        OutputError: they cannot be written.
        DataError: negatives cannot be read.
    """
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(files("vlm.curation.negatives").joinpath("report.html.j2").read_text(encoding="utf-8"))
        .render(
            folder=folder.absolute().name,
            facts=_facts(shards, counts, name, seed),
            outcomes=_outcomes(counts),
            rows=[(rule, counts.of_rule(rule)) for rule in counts.rules],
            sheets=list(_sheets(shards, places, seed=seed, fields=fields)),
        )
    )
    path = folder / "report.html"
    with writing(path), replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    write_json(folder / "report.json", {"maker": name, "seed": seed, **counts.to_mapping()}, indent=1)
    return path


def _facts(shards: ShardSet, counts: ShardCounts, name: str, seed: int) -> dict[str, str]:
    per_caption = counts.kept / max(1, counts.captions)
    return {
        "Samples": f"{counts.samples:,} in {len(shards.urls):,} shards, {counts.without_caption:,} without "
        "a caption",
        "Captions": f"{counts.captions:,}",
        "Negatives": f"{counts.kept:,}, {per_caption:.2f} of a caption",
        "Kept": f"{counts.kept / max(1, counts.made):.1%} of the texts that were made",
        "Maker": f"{name}, seed {seed}",
    }


def _outcomes(counts: ShardCounts) -> list[str]:
    """The columns of the table: what was kept first, what was not made last."""
    found = {outcome for _, outcome in counts.outcomes} - {KEPT, NOTHING}
    return [KEPT, *sorted(found), NOTHING]


def _sheets(shards: ShardSet, places: Sequence[Path], *, seed: int, fields: Sequence[str]) -> Iterator[Sheet]:
    """Samples drawn at random, in their stored order."""
    count = min(SAMPLES_SHOWN, shards.num_samples)
    drawn = sorted(random.Random(seed).sample(range(shards.num_samples), count))
    members = members_of(fields) | frozenset(IMAGE_EXTENSIONS)
    with closing(ShardCursor(shards, members)) as cursor:
        for shard, group in groupby(map(shards.locate, drawn), key=lambda place: place[0]):
            try:
                negatives = parse_negatives(places[shard].read_bytes())
            except (OSError, ValueError) as error:
                raise DataError(f"{places[shard]} {error}; delete it and make the negatives again") from error
            for _, row in group:
                try:
                    raw = cursor.read(shard, row)
                    record = decode_record(raw)
                except (BrokenShardError, BrokenSampleError) as error:
                    logger.warning("the report lacks a sample of %s: %s", shards.urls[shard], error)
                    continue
                captions = captions_of(record, fields)
                yield Sheet(
                    key=raw.key,
                    picture=_picture(raw),
                    captions=[(c, [n for n in negatives[row].negatives if n.caption == c]) for c in captions],
                )


def _picture(raw: RawSample) -> str | None:
    try:
        return data_uri(thumbnail(sample_image(raw), side=SIDE))
    except (BrokenSampleError, UnreadableImageError, OSError) as error:
        logger.warning("the report lacks a picture of %s: %s", raw.name, error)
        return None
