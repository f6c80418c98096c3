"""What is known of shards without opening them: how many samples each has, and where they begin.

`sizes.json` in a folder maps the names of its tars to their numbers of samples. Beside a plain tar,
`<stem>.index.parquet` has a row for each sample: `key`, `offset` of its first header and `size`, the bytes
it takes with headers and padding. What is missing is found out once, from img2dataset's `<stem>_stats.json`
or by one pass over the tar, and kept beside the shards, or in a cache folder where that is not possible.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import Int64
from numpy import ndarray
from tqdm import tqdm

from vlm.data.remote import DEFAULT_REMOTE, PIPE, Remote, StoreError, read_small
from vlm.data.tar import DAMAGE, TarReader, is_compressed, is_local, open_shard
from vlm.errors import DataError
from vlm.files import DRAFT, replacing

logger = logging.getLogger(__name__)

SIZES = "sizes.json"
INDEX_SUFFIX = ".index.parquet"
_THREADS = 8
_DELETE = "delete it to have the shards counted again"
# A tar of so many samples would have terabytes of headers alone.
_MOST_SAMPLES = 1 << 32
_FARTHEST = 1 << 50
_RECOUNT = "write or fetch it again and delete its line in sizes.json to have it counted anew"


class IndexNotWrittenError(DataError):
    """The disk is full, or the folder does not take the index."""


def shard_sizes(urls: Sequence[str], *, remote: Remote = DEFAULT_REMOTE) -> tuple[int, ...]:
    """The number of samples in each shard, indexing first what has no index.

    Any number of processes may call this at once; one of them does the work.

    Raises:
        DataError: a shard cannot be read.
    """
    sizes = {folder: _folder_sizes(folder, names, remote) for folder, names in _by_folder(urls).items()}
    return tuple(sizes[folder][name] for folder, name in map(_split, urls))


def stored_sizes(urls: Sequence[str]) -> tuple[int | None, ...]:
    """What the index says of each shard, None where it says nothing; nothing is counted."""
    known = {
        folder: _known_sizes(folder, _home(folder), names, DEFAULT_REMOTE)
        for folder, names in _by_folder(urls).items()
    }
    return tuple(known[folder].get(name) for folder, name in map(_split, urls))


def index_shards(urls: Sequence[str]) -> dict[str, int]:
    """Complete the index of shards: counts, and member offsets of plain local tars.

    A count that turns out wrong while offsets are looked for is corrected, with a warning.

    Returns:
        Where the index lies: a folder, and the number of shards that are indexed there.

    Raises:
        DataError: a shard cannot be read, or the index cannot be written; what was there stays as it was.
    """
    sizes = dict(zip(urls, shard_sizes(urls), strict=True))
    lacking = [url for url in urls if is_local(url) and _is_plain(url) and not _has_rows(url, sizes[url])]
    places: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda url: _count_by_pass(url, _home(_split(url)[0]), DEFAULT_REMOTE), lacking)
        bar = tqdm(counts, total=len(lacking), desc="looking for offsets", unit="shard", delay=2)
        for url, count in zip(lacking, bar, strict=True):
            if count != sizes[url]:
                logger.warning("%s holds %d samples, its index said %d; corrected", url, count, sizes[url])
                places.setdefault(str(_home(_split(url)[0])), {})[_split(url)[1]] = count
    for place, corrected in places.items():
        write_sizes(Path(place), corrected)
    return dict(Counter(str(_home(_split(url)[0])) for url in urls))


def _has_rows(url: str, count: int) -> bool:
    offsets = read_offsets(url)
    return offsets is not None and len(offsets) == count


def read_offsets(url: str, *, remote: Remote = DEFAULT_REMOTE) -> Int64[ndarray, "n"] | None:
    """Where the samples of a plain tar begin, or None where no index says so."""
    folder, name = _split(url)
    if folder == PIPE:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    for place in (folder, str(_cache(folder))):
        data = _read_bytes(_join(place, offsets_name(name)), remote)
        if data is not None:
            try:
                rows = pq.ParquetFile(io.BytesIO(data)).read(columns=["offset"], use_threads=False)
                offsets: ndarray = rows["offset"].to_numpy().astype(np.int64, casting="safe")
                _check_offsets(offsets)
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as error:
                path = _join(place, offsets_name(name))
                raise DataError(f"{path} is no index: {error}; delete it and {SIZES}") from error
            return offsets
    return None


def _check_offsets(offsets: Int64[ndarray, "n"]) -> None:
    """Headers of a tar follow each other, each at the beginning of a block."""
    ascending = len(offsets) == 0 or (offsets[0] >= 0 and (np.diff(offsets) > 0).all())
    if not ascending or (offsets % tarfile.BLOCKSIZE).any() or offsets[-1:].sum() > _FARTHEST:
        raise ValueError("its offsets are no places of headers in their order")


def write_offsets(tar: Path, keys: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]) -> None:
    """Write `<stem>.index.parquet` beside a tar, one row for each sample; sizes in bytes of the tar."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            # tar names are bytes; Arrow's strings are strict UTF-8
            "key": pa.array([key.encode("utf-8", "replace").decode() for key in keys], pa.string()),
            "offset": pa.array(offsets, pa.int64()),
            "size": pa.array(sizes, pa.int64()),
        }
    )
    with _replacing(tar.with_name(offsets_name(tar.name))) as path:
        pq.write_table(table, path)


def write_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Add the sample counts of tars, by file name, to the folder's `sizes.json`."""
    merged = _read_sizes(str(folder), DEFAULT_REMOTE) | dict(sizes)
    with _replacing(folder / SIZES) as path:
        path.write_text(json.dumps(dict(sorted(merged.items())), indent=1) + "\n")


def _split(url: str) -> tuple[str, str]:
    """Folder and file name; a command is a name in a folder of its own kind."""
    if url.startswith(PIPE):
        return PIPE, url
    if is_local(url):
        return os.path.split(os.path.abspath(url))
    folder, _, name = url.rpartition("/")
    return folder, name


def _by_folder(urls: Sequence[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for url in urls:
        folder, name = _split(url)
        folders.setdefault(folder, []).append(name)
    return folders


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}"


def stem(name: str) -> str:
    """The name of a tar, or its path, without its ending."""
    for suffix in (".gz", ".tgz", ".tar"):
        name = name.removesuffix(suffix)
    return name


def offsets_name(name: str) -> str:
    """The file beside a tar that says where its samples begin."""
    return f"{stem(name)}{INDEX_SUFFIX}"


def _folder_sizes(folder: str, names: Sequence[str], remote: Remote) -> dict[str, int]:
    home = _home(folder)
    known = _known_sizes(folder, home, names, remote)
    if all(name in known for name in names):
        return known
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".index.lock"):
        known = _known_sizes(folder, home, names, remote)  # another process may have counted meanwhile
        missing = [name for name in names if name not in known]
        if missing:
            _remove_drafts(home)
            known |= _count(folder, home, missing, remote)
            write_sizes(home, {name: known[name] for name in missing})
            logger.info("indexed %d shards of %s; the index is in %s", len(missing), folder, home)
    return known


def _known_sizes(folder: str, home: Path, names: Sequence[str], remote: Remote) -> dict[str, int]:
    known = _read_sizes(folder, remote)
    if str(home) == folder:
        return known
    cached = _read_sizes(str(home), remote)
    if is_local(folder) and cached:
        asked, written = set(names), (home / SIZES).stat().st_mtime
        cached = {n: c for n, c in cached.items() if n in asked and _modified(folder, n) <= written}
    return cached | known


def _modified(folder: str, name: str) -> float:
    return os.stat(_join(folder, name)).st_mtime


def _read_sizes(folder: str, remote: Remote) -> dict[str, int]:
    path = _join(folder, SIZES)
    values = _read_json(path, remote)
    try:
        return {name: _whole(count) for name, count in values.items()}
    except ValueError as error:
        raise DataError(f"{path} holds more than counts: {error}; {_DELETE}") from None


def _whole(count: Any) -> int:
    """A number of samples; open_clip's files may hold it as a text."""
    text = str(count)
    if isinstance(count, int | str) and text.isdecimal() and len(text) < 20 and int(text) <= _MOST_SAMPLES:
        return int(text)
    raise ValueError(f"{text[:40]!r} is no number of samples")


def _read_json(path: str, remote: Remote) -> dict[str, Any]:
    """A small json file, local or not; empty if there is none."""
    data = _read_bytes(path, remote)
    try:
        values = json.loads(data or "{}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no json: {error}; {_DELETE}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}, not names and values; {_DELETE}")
    return values


def _read_bytes(path: str, remote: Remote) -> bytes | None:
    if path.startswith(PIPE):
        return None
    if not is_local(path):
        try:
            return read_small(path, remote=remote)
        except StoreError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def is_writable(folder: str) -> bool:
    """Whether files may be added beside the shards of a folder."""
    # Root may write anywhere, but a folder whose write bits are all off is meant to stay as it is.
    return is_local(folder) and os.access(folder, os.W_OK) and bool(os.stat(folder).st_mode & 0o222)


def _home(folder: str) -> Path:
    """Where an index of this folder may be written."""
    return Path(folder) if is_writable(folder) else _cache(folder)


def _cache(folder: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "vlm" / "index" / hashlib.sha256(folder.encode()).hexdigest()[:16]


def _count(folder: str, home: Path, names: Sequence[str], remote: Remote) -> dict[str, int]:
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda name: _count_shard(folder, home, name, remote), names)
        bar = tqdm(counts, total=len(names), desc=f"indexing {folder}", unit="shard", delay=2)
        return dict(zip(names, bar, strict=True))


def _count_shard(folder: str, home: Path, name: str, remote: Remote) -> int:
    path = _join(folder, f"{stem(name)}_stats.json")
    statistics = _read_json(path, remote) if folder != PIPE else {}
    if "successes" in statistics:
        try:
            return _whole(statistics["successes"])
        except ValueError as error:
            raise DataError(f"{path}: successes: {error}; {_DELETE}") from None
    return _count_by_pass(name if folder == PIPE else _join(folder, name), home, remote)


def _count_by_pass(url: str, home: Path, remote: Remote) -> int:
    try:
        return _pass(url, home / _split(url)[1], remote)
    except IndexNotWrittenError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{url} cannot be read to its end: {reason}; write or fetch it again, or leave it out"
        ) from error


def _is_plain(url: str) -> bool:
    with open_shard(url) as file:
        return not is_compressed(file)


def _pass(url: str, tar: Path, remote: Remote) -> int:
    """Count the samples of a tar by one pass over it, and keep the offsets where they mean something."""
    file = open_shard(url, remote=remote)
    plain = not is_compressed(file) and not url.startswith(PIPE)
    reader = TarReader(file, url=url, members=frozenset())
    keys: list[str] = []
    starts = [reader.sample_offset]
    try:
        while sample := reader.read():
            keys.append(sample.key)
            starts.append(reader.sample_offset)
        if not keys:
            logger.warning("%s holds no sample; %s", url, _RECOUNT)
        elif not reader.has_end:
            logger.warning("%s has no end of a tar after its sample %d; %s", url, len(keys), _RECOUNT)
    except DAMAGE as error:
        if not keys:
            raise
        logger.warning("%s is counted up to its sample %d only: %s; %s", url, len(keys), error, _RECOUNT)
    reader.close()
    if plain:
        sizes = [stop - start for start, stop in pairwise(starts)]
        write_offsets(tar, keys, starts[:-1], sizes)
    return len(keys)


def _remove_drafts(home: Path) -> None:
    """Remove what a process that was killed while it indexed has left; others wait for the lock."""
    for draft in (*home.glob(f".*.index.parquet.*{DRAFT}"), *home.glob(f".{SIZES}.*{DRAFT}")):
        draft.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """`vlm.files.replacing` with an error that says what became of the index."""
    try:
        with replacing(path) as draft:
            yield draft
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise IndexNotWrittenError(
            f"{path} cannot be written: {reason}; what was there is unchanged"
        ) from error
