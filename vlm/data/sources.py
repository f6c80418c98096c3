"""Where samples come from: shard patterns and the names of caption fields."""

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.data.remote import DEFAULT_REMOTE, PIPE, Remote, StoreError, glob_remote
from vlm.data.tar import is_local
from vlm.errors import ConfigError, DataError

_MOST_SHARDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """Image-text shards and where their captions stand.

    Args:
        shards: one pattern or several: paths or URLs with `{00000..00041}`, `{a,b}` or `*`, or `pipe:` and a
            shell command that writes a tar to its standard output.
        captions: one field or several, as `txt` or `json.caption_en`; the value is a string or a list of
            strings. One non-empty field is drawn for each sample, then one of its strings. None: no captions.
        share: this source's share of every batch; only for entries of `data.mix`.
        labels: `cls`, the member with a class, or the name of the sidecars that hold labels; None: no labels.
        labels_from: the folder of the sidecars; None: they lie beside the shards.
        labels_per_sample: how many labels of a sidecar are taken, the first; None: all.
        negatives: the name of the sidecars that hold hard negatives of the captions; None: there are none.
        negatives_from: their folder; None: they lie beside the shards.
        negatives_per_sample: how many are drawn for the caption of a sample, where it has more.

    Raises:
        ConfigError: no field is named.
    """

    shards: str | Sequence[str]
    captions: str | Sequence[str] | None
    share: float | None = None
    labels: str | None = None
    labels_from: str | None = None
    labels_per_sample: int | None = None
    negatives: str | None = None
    negatives_from: str | None = None
    negatives_per_sample: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", as_strings(self.shards))
        if self.captions is not None:
            object.__setattr__(self, "captions", as_strings(self.captions))
        if self.captions == ():
            raise ConfigError("the captions of a data source are empty; name a field, as txt or json.caption")

    @property
    def num_negatives(self) -> int:
        """Hard negatives that a caption has at most."""
        return self.negatives_per_sample if self.negatives else 0


def as_strings(value: str | Iterable[str]) -> tuple[str, ...]:
    """One string or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def expand_shards(
    patterns: str | Sequence[str], *, key: str, remote: Remote = DEFAULT_REMOTE
) -> tuple[str, ...]:
    """Every shard that the patterns name, in order; `*` in the order of names.

    Args:
        key: the configuration key of the patterns, for messages.

    Raises:
        ConfigError: a pattern has unbalanced braces.
        DataError: a pattern matches nothing or is a folder, a local file does not exist, or a shard is named
            twice.
    """
    shards = [shard for pattern in as_strings(patterns) for shard in _expand(pattern, key, remote)]
    if not shards:
        raise DataError(f"{key} is empty; name shards, as in 'path/{{00000..00041}}.tar'")
    _check_presence(shards, key=key)
    name, count = Counter(shards).most_common(1)[0]
    if count > 1:
        raise DataError(f"{key} names {name!r} {count} times; once is enough (data.mix weighs sources)")
    return tuple(shards)


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of the local paths at which nothing lies."""
    folders: dict[str, set[str]] = {}
    missing = []
    for file in filter(is_local, paths):
        folder, name = os.path.split(file)
        if folder not in folders:  # one listing for thousands of files: a stat each is slow on network disks
            path = Path(folder or ".")
            folders[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if name not in folders[folder]:
            missing.append(file)
    return missing


def _check_presence(shards: Iterable[str], *, key: str) -> None:
    missing = missing_files(shards)
    if missing:
        more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise DataError(
            f"{key}: {missing[0]!r} does not exist{more}; correct the pattern or write the shards"
        )


def _expand(pattern: str, key: str, remote: Remote) -> list[str]:
    from braceexpand import braceexpand

    pattern = pattern.removeprefix("file://")
    if Path(pattern).is_file():
        return [pattern]
    if pattern and is_local(pattern) and Path(pattern).is_dir():
        raise DataError(f"{key}={pattern!r} is a folder; use '{pattern.rstrip('/')}/*.tar'")
    if _num_shards(pattern) > _MOST_SHARDS:
        raise ConfigError(f"{key}={pattern!r} names more than {_MOST_SHARDS:,} shards; correct the braces")
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{key}={pattern!r} has braces that do not match: {error}") from None
    try:
        shards = [shard for name in names for shard in _glob(name, remote)]
    except StoreError as error:
        raise DataError(f"{key}={pattern!r} cannot be listed: {error}") from error
    if not shards:
        raise DataError(f"{key}={pattern!r} matches no file; correct the path or write the shards first")
    return shards


def _num_shards(pattern: str) -> int:
    """How many names the ranges in a pattern make, without making them."""
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)
    return math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)


def _glob(name: str, remote: Remote) -> list[str]:
    if name.startswith(PIPE) or not glob.has_magic(name):
        return [name]
    if is_local(name):
        return sorted(glob.glob(name, recursive=True))
    if "*" not in name:  # "?" and "[" are ordinary characters of a URL
        return [name]
    return glob_remote(name, remote=remote)
