"""Where negatives lie, and which of them are there already."""

from collections.abc import Collection, Sequence
from pathlib import Path

from vlm.data import ShardSet
from vlm.data.negatives import Origin, read_footer
from vlm.data.sidecar import sidecar_path
from vlm.data.tar import is_local
from vlm.errors import ConfigError, DataError


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
    """The shards whose negatives are still to be made, or counted.

    Args:
        known: sidecars of which it is known what was dropped.

    Raises:
        ConfigError: there are negatives of another making, or something else.
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
            if rows == shards.sizes[shard] and str(place) in known:
                continue
        pending.append(shard)
    return pending


def _in_words(origin: Origin) -> str:
    if not origin.maker:
        return "something else than negatives"
    return f"negatives by maker={origin.maker} with seed={origin.seed}"


def _footer(place: Path) -> tuple[int, Origin]:
    try:
        return read_footer(str(place))
    except ValueError as error:
        raise DataError(f"{place} {error}; delete it") from error
