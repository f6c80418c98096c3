"""What was computed about samples and lies beside their shards: `<stem>.<name>.parquet`, a row a sample."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from vlm.data.index import stem
from vlm.data.remote import PIPE, StoreError, contact, read_whole
from vlm.data.shards import ShardSet
from vlm.data.sources import missing_files
from vlm.data.tar import is_local
from vlm.errors import ConfigError, DataError

# What the name of a sidecar may be made of; the offsets of samples lie in <stem>.index.parquet.
_NAME = re.compile(r"(?!index$)[\w-]+")

# Opening a file takes a network disk longer than listing it: the rows of so many sidecars are counted before
# training, those of the others when they are read.
_MOST_COUNTED = 1000
_THREADS = 32


def sidecar_path(shard: str, name: str, *, folder: str | None = None) -> str:
    """Where what is called `name` lies for a shard: beside it, or in a folder under the same file name."""
    beside = f"{stem(shard)}.{name}.parquet"
    return beside if folder is None else f"{folder.rstrip('/')}/{beside.rpartition('/')[2]}"


def check_name(name: str, *, key: str, folder: str | None, instead: str | None = None) -> None:
    """Check that a configured name is one of sidecars.

    Args:
        key: of the name, for messages.
        folder: the key of a folder for them; None: they lie beside the shards.
        instead: the other value that it may have.

    Raises:
        ConfigError: it is none.
    """
    if not _NAME.fullmatch(name):
        neither = f"neither {instead} nor" if instead else "not"
        elsewhere = f"; a folder goes into {folder}" if folder else ""
        raise ConfigError(
            f"{key}={name!r} is {neither} a name as in <stem>.<name>.parquet, of letters, digits, - and _, "
            f"and not index{elsewhere}"
        )


def read_footer(path: str) -> tuple[int, dict[bytes, bytes]]:
    """Rows and metadata of a local sidecar, without the rest.

    Raises:
        ValueError: it is none; the message goes on after the name of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    return footer.num_rows, footer.metadata or {}


@runtime_checkable
class Content(Protocol):
    """What a sidecar holds."""

    @property
    def origin(self) -> tuple[Any, ...]:
        """What all sidecars of one making agree in."""
        ...

    @property
    def digest(self) -> str:
        """Tells it from another content, however a file stores it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Any: ...


C = TypeVar("C", bound=Content)


class Sidecars(Generic[C]):
    """Files beside the shards of a source; the first is read at once. A subclass says what is in them.

    Args:
        name: `clusters` for `<stem>.clusters.parquet`.
        folder: where they lie instead, a path or a URL.
        key: of the source, as `data.train`, for messages.

    Raises:
        DataError: files are missing or do not belong to the shards, as far as it is known without reading
            them all.
    """

    what: ClassVar[str]
    """What they hold, in the plural: also the setting of the source that names them."""
    instead: ClassVar[str]
    """Value of that setting which needs no sidecars."""
    origin: Any
    """What all of them agree in."""
    digest: str
    """Tells them from others, by the first."""

    def __init__(self, shards: ShardSet, name: str, *, folder: str | None, key: str) -> None:
        self._shards = shards
        self._paths = tuple(sidecar_path(url, name, folder=folder) for url in shards.urls)
        self._key = key
        self._setting = f"{key}.{self.what}={name}"
        self._filled = [shard for shard, size in enumerate(shards.sizes) if size]
        self._check_paths()
        self._first = self._filled[0]
        example = self._load(self._first)
        self.origin, self.digest = example.origin, example.digest
        self._check_example(example)
        self._check_footers()

    def read(self, shard: int) -> C:
        """What lies beside a shard.

        Raises:
            DataError: it does not belong to the shard or to the others, or cannot be read.
        """
        content = self._load(shard)
        self._check_origin(shard, content.origin)
        self._check_content(shard, content)
        return content

    def parse(self, data: bytes) -> C:
        """The content of a file; raises a ValueError whose message goes on after the file's name."""
        raise NotImplementedError

    def origin_in(self, said: Mapping[bytes, bytes]) -> tuple[Any, ...]:
        """The origin in the metadata of a file; raises as `parse`."""
        raise NotImplementedError

    def in_words(self, origin: Any) -> str:
        """Of what making they are."""
        raise NotImplementedError

    def _check_example(self, content: C) -> None:
        """Look at the first content before any other."""

    def _check_content(self, shard: int, content: C) -> None:
        """Look at one that is to be used."""

    def _load(self, shard: int) -> C:
        path, remote = self._paths[shard], self._shards.remote
        try:
            data = Path(path).read_bytes() if is_local(path) else read_whole(path, remote=remote)
            content = self.parse(data)
        except StoreError as error:
            raise self._error(
                shard, f"cannot be read: {error}; when it can be, go on with run.resume=true"
            ) from error
        except OSError as error:
            raise self._error(shard, f"cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise self._again(shard, str(error)) from error
        self._check_rows(shard, len(content))
        return content

    def _check_paths(self) -> None:
        """That every shard has a sidecar of its own, as far as a listing of local folders says."""
        owner: dict[str, str] = {}
        for path, url in zip(self._paths, self._shards.urls, strict=True):
            if url.startswith(PIPE):
                advice = f"use {self._key}.{self.what}={self.instead}"
                raise DataError(f"{self._setting}: nothing can lie beside {url!r}; {advice}")
            if owner.setdefault(path, url) != url:
                raise DataError(
                    f"{self._setting}: {owner[path]} and {url} would share {path}; leave out "
                    f"{self._key}.{self.what}_from, or rename one"
                )
        needed = [self._paths[shard] for shard in self._filled]
        missing = missing_files(needed)
        if missing:
            more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
            raise DataError(
                f"{self._setting}: {missing[0]} does not exist{more}; make the {self.what}, or say by "
                f"{self._key}.{self.what}_from where they lie"
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
            rows, said = read_footer(self._paths[shard])
            origin = self.origin_in(said)
        except ValueError as error:
            raise self._again(shard, str(error)) from error
        self._check_rows(shard, rows)
        self._check_origin(shard, origin)

    def _check_rows(self, shard: int, rows: int) -> None:
        size = self._shards.sizes[shard]
        if rows != size:
            raise self._again(shard, f"has {rows} rows, its shard {size} samples")

    def _check_origin(self, shard: int, origin: tuple[Any, ...]) -> None:
        if origin != self.origin:
            first = f"{self._paths[self._first]} ({self.in_words(self.origin)})"
            what = f"have {self.what} of two makings, which mean different things; make all again"
            raise self._error(shard, f"({self.in_words(origin)}) and {first} {what}")

    def _again(self, shard: int, what: str) -> DataError:
        return self._error(shard, f"{what}; make the {self.what} again")

    def _error(self, shard: int, what: str) -> DataError:
        return DataError(f"{self._setting}: {self._paths[shard]} {what}")
