"""The labels of a source's samples: their `cls` members, or sidecars that lie beside the shards."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vlm.broken import Cause
from vlm.data.remote import PIPE, StoreError, contact, read_whole
from vlm.data.samples import BrokenSampleError
from vlm.data.shards import ShardSet
from vlm.data.sidecar import Labels, Origin, parse_sidecar, read_footer, sidecar_path
from vlm.data.sources import Source, missing_files
from vlm.data.tar import is_local
from vlm.errors import ConfigError, DataError

CLS = "cls"
"""The member that holds a class, and the value of `labels` that names it."""

# What the name of a sidecar may be made of.
_NAME = re.compile(r"[\w-]+")

_LARGEST = (1 << 63) - 1

# Opening a file takes a network disk longer than listing it: the rows of so many sidecars are counted before
# training, those of the others when they are read.
_MOST_COUNTED = 1000
_THREADS = 32


def class_of(record: Mapping[str, Any]) -> tuple[int, ...]:
    """The class in a sample's `cls`; nothing where it has none, or a negative one.

    Raises:
        BrokenSampleError: no tensor can hold it.
    """
    number: int = record.get(CLS, -1)
    if number > _LARGEST:
        raise BrokenSampleError(f"its cls is no class: {str(number)[:20]}…", Cause.UNREADABLE_TEXT)
    return (number,) if number >= 0 else ()


def check_labels(source: Source, *, key: str) -> None:
    """Check that the name of sidecars is one, and that further keys have sidecars to be about.

    Raises:
        ConfigError: they contradict each other, or a number is out of range.
    """
    if source.labels is not None and not _NAME.fullmatch(source.labels):
        raise ConfigError(
            f"{key}.labels={source.labels!r} is neither cls nor a name as in <stem>.<name>.parquet; "
            f"a folder goes into {key}.labels_from"
        )
    for name, without in (("labels_from", None), ("labels_per_sample", 1)):  # a cls is one label
        if source.labels in (None, CLS) and getattr(source, name) not in (None, without):
            raise ConfigError(
                f"{key}.{name}={getattr(source, name)} is for labels in sidecars, and {key}.labels="
                f"{source.labels or 'null'}; set it to null"
            )
    if source.labels_per_sample is not None and source.labels_per_sample < 1:
        raise ConfigError(f"{key}.labels_per_sample={source.labels_per_sample} must be at least 1, or null")


class Sidecars:
    """Labels that lie beside the shards of a source. The first are read at once, to know how many there are.

    Args:
        name: `clusters` for `<stem>.clusters.parquet`.
        folder: where they lie instead, a path or a URL.
        per_sample: labels that are taken of each sample, the first; None: as many as the first shard's
            samples have at most, and more are an error.
        key: of the source, as `data.train`, for messages.

    Raises:
        DataError: sidecars are missing or do not belong to the shards, as far as it is known without reading
            them all.
    """

    def __init__(
        self, shards: ShardSet, name: str, *, folder: str | None, per_sample: int | None, key: str
    ) -> None:
        self._shards = shards
        self._paths = tuple(sidecar_path(url, name, folder=folder) for url in shards.urls)
        self._per_sample = per_sample
        self._key = key
        self._name = name
        self._filled = [shard for shard, size in enumerate(shards.sizes) if size]
        self._check_paths()
        self._first = self._filled[0]
        first = self._load(self._first)
        self._origin = first.origin
        self.width = per_sample or first.width
        """Labels of a sample at most."""
        self.digest = first.digest
        """Tells the labels from others, by those of the first shard."""
        if not self.width:
            raise self._error(self._first, "has no label for any sample; make the labels again")
        self._check_footers()

    @classmethod
    def of(cls, source: Source, shards: ShardSet, *, key: str) -> "Sidecars | None":
        """Those that a source names, if any; raises as the constructor."""
        if source.labels in (None, CLS):
            return None
        assert source.labels is not None
        per_sample = source.labels_per_sample
        return cls(shards, source.labels, folder=source.labels_from, per_sample=per_sample, key=key)

    @property
    def origin(self) -> Origin:
        """What all the sidecars agree in."""
        return self._origin

    def read(self, shard: int) -> Labels:
        """The labels of a shard's samples.

        Raises:
            DataError: they do not belong to the shard or to the other labels, or cannot be read.
        """
        labels = self._load(shard)
        self._check_origin(shard, labels.origin)
        if self._per_sample is None and labels.width > self.width:
            raise self._error(
                shard,
                f"has {labels.width} labels for a sample, {self._paths[self._first]} at most {self.width}; "
                f"set {self._key}.labels_per_sample",
            )
        return labels

    def _load(self, shard: int) -> Labels:
        path, remote = self._paths[shard], self._shards.remote
        try:
            data = Path(path).read_bytes() if is_local(path) else read_whole(path, remote=remote)
            labels = parse_sidecar(data)
        except StoreError as error:
            raise self._error(
                shard, f"cannot be read: {error}; when it can be, go on with run.resume=true"
            ) from error
        except OSError as error:
            raise self._error(shard, f"cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise self._error(shard, f"{error}; make the labels again") from error
        self._check_rows(shard, len(labels))
        return labels

    def _check_paths(self) -> None:
        """That every shard has a sidecar of its own, as far as a listing of local folders says."""
        owner: dict[str, str] = {}
        for path, url in zip(self._paths, self._shards.urls, strict=True):
            if url.startswith(PIPE):
                raise DataError(
                    f"{self._setting}: nothing can lie beside {url!r}; use {self._key}.labels=cls"
                )
            if owner.setdefault(path, url) != url:
                raise DataError(
                    f"{self._setting}: {owner[path]} and {url} would share {path}; leave out "
                    f"{self._key}.labels_from, or rename one"
                )
        needed = [self._paths[shard] for shard in self._filled]
        missing = missing_files(needed)
        if missing:
            more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
            raise DataError(
                f"{self._setting}: {missing[0]} does not exist{more}; make the labels, or say by "
                f"{self._key}.labels_from where they lie"
            )
        distant = [path for path in needed if not is_local(path)]
        if distant:
            contact(distant[0], key=self._setting, remote=self._shards.remote)

    def _check_footers(self) -> None:
        local = [shard for shard in self._filled if is_local(self._paths[shard])]
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(self._check_footer, local[:_MOST_COUNTED]):
                pass

    def _check_footer(self, shard: int) -> None:
        try:
            rows, origin = read_footer(self._paths[shard])
        except ValueError as error:
            raise self._error(shard, f"{error}; make the labels again") from error
        self._check_rows(shard, rows)
        self._check_origin(shard, origin)

    def _check_rows(self, shard: int, rows: int) -> None:
        size = self._shards.sizes[shard]
        if rows != size:
            raise self._error(shard, f"has {rows} rows, its shard {size} samples; make the labels again")

    def _check_origin(self, shard: int, origin: Origin) -> None:
        if origin != self._origin:
            raise self._error(
                shard,
                f"({in_words(origin)}) and {self._paths[self._first]} ({in_words(self._origin)}) have "
                "labels of two makings, which mean different things; make all again",
            )

    @property
    def _setting(self) -> str:
        return f"{self._key}.labels={self._name}"

    def _error(self, shard: int, what: str) -> DataError:
        return DataError(f"{self._setting}: {self._paths[shard]} {what}")


def in_words(origin: Origin) -> str:
    """In words."""
    return f"{origin.num_classes or 'unknown'} classes, made by {origin.made_by or 'unknown'}"
