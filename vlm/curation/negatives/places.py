"""Where negatives lie, and which of them are there already."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlm.curation.negatives.captions import read_captions
from vlm.data import ShardSet
from vlm.data.negatives import Origin, parse_negatives
from vlm.data.sidecar import read_footer, sidecar_path
from vlm.data.tar import is_local
from vlm.errors import ConfigError, DataError

# Of a shard that nobody seems to have written again; all keys are a pass over it.
_FIRST = 16


def negative_places(shards: ShardSet, name: str, *, out: str | None) -> tuple[Path, ...]:
    """Where the negatives of each shard are written.

    Raises:
        ConfigError: nothing can be written beside remote shards, or two shards would share a file.
    """
    distant = [url for url in shards.urls if not is_local(url)]
    if out is None and distant:
        raise ConfigError(
            f"nothing can be written beside {distant[0]}; set out= to a folder for the negatives"
        )
    places = [sidecar_path(url, name, folder=out) for url in shards.urls]
    owner: dict[str, str] = {}
    for place, url in zip(places, shards.urls, strict=True):
        if owner.setdefault(place, url) != url:
            raise ConfigError(
                f"{owner[place]} and {url} would share {place}; leave out= null, or make their negatives in "
                "two folders"
            )
    return tuple(map(Path, places))


def pending_shards(
    shards: ShardSet, places: Sequence[Path], known: Collection[str], *, made_by: str
) -> list[int]:
    """The shards whose negatives are still to be made, made again as they are of other samples, or counted.

    Args:
        known: sidecars of which it is known what was dropped.

    Raises:
        ConfigError: there are negatives of another making, or something else.
        DataError: a shard or a sidecar cannot be read.
    """
    pending = []
    for shard, place in enumerate(places):
        if place.is_file():
            rows, origin = _footer(place)
            if origin.made_by != made_by:
                raise ConfigError(
                    f"{place} holds {_in_words(origin)}, made of other captions or with other settings than "
                    "asked for; choose another name=, or delete them if no training needs them"
                )
            done = rows == shards.sizes[shard] and str(place) in known
            if done and _is_of_samples(shards, shard, place):
                continue
        pending.append(shard)
    return pending


def _in_words(origin: Origin) -> str:
    if not origin.maker:
        return "something else than negatives"
    return f"negatives by maker={origin.maker} with seed={origin.seed}"


def _is_of_samples(shards: ShardSet, shard: int, place: Path) -> bool:
    """Whether the keys are those of the shard; of one older than its sidecar the first keys tell."""
    url = shards.urls[shard]
    written_since = is_local(url) and os.stat(url).st_mtime_ns >= place.stat().st_mtime_ns
    count = shards.sizes[shard] if written_since else min(_FIRST, shards.sizes[shard])
    with _naming(place):
        keys = parse_negatives(place.read_bytes()).keys[:count].to_pylist()
    found = (sample.key for sample in read_captions(shards, shard, ()))  # the index may be as old as the keys
    return all(key == own for key, own in zip(keys, found, strict=False))


def _footer(place: Path) -> tuple[int, Origin]:
    with _naming(place):
        rows, said = read_footer(str(place))
        return rows, Origin.of(said)


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(f"{place} {error}; delete it") from error
