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
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock
from jaxtyping import Int64
from numpy import ndarray
from tqdm import tqdm

from vlm.data.tar import TarReader, is_compressed, is_local, open_shard, open_url
from vlm.errors import DataError

logger = logging.getLogger(__name__)

SIZES = "sizes.json"
_PIPE = "pipe:"
_THREADS = 8


class IndexNotWrittenError(DataError):
    """The disk is full, or the folder does not take the index."""


def shard_sizes(urls: Sequence[str]) -> tuple[int, ...]:
    """The number of samples in each shard, indexing first what has no index.

    Any number of processes may call this at once; one of them does the work.

    Raises:
        DataError: a shard cannot be read.
    """
    folders: dict[str, list[str]] = {}
    for url in urls:
        folder, name = _split(url)
        folders.setdefault(folder, []).append(name)
    sizes = {folder: _folder_sizes(folder, names) for folder, names in folders.items()}
    return tuple(sizes[folder][name] for folder, name in map(_split, urls))


def stored_sizes(urls: Sequence[str]) -> tuple[int | None, ...]:
    """What the index says of each shard, None where it says nothing; nothing is counted."""
    folders: dict[str, list[str]] = {}
    for url in urls:
        folder, name = _split(url)
        folders.setdefault(folder, []).append(name)
    known = {folder: _known_sizes(folder, _home(folder), names) for folder, names in folders.items()}
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
    lacking = [url for url in urls if is_local(url) and _is_plain(url) and read_offsets(url) is None]
    places: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda url: _count_by_pass(url, _home(_split(url)[0])), lacking)
        bar = tqdm(counts, total=len(lacking), desc="looking for offsets", unit="shard", delay=2)
        for url, count in zip(lacking, bar, strict=True):
            if count != sizes[url]:
                logger.warning("%s holds %d samples, its index said %d; corrected", url, count, sizes[url])
                places.setdefault(str(_home(_split(url)[0])), {})[_split(url)[1]] = count
    for place, corrected in places.items():
        write_sizes(Path(place), corrected)
    return dict(Counter(str(_home(_split(url)[0])) for url in urls))


def read_offsets(url: str) -> Int64[ndarray, "n"] | None:
    """Where the samples of a plain tar begin, or None where no index says so."""
    folder, name = _split(url)
    if folder == _PIPE:
        return None
    import pyarrow.parquet as pq

    for place in (folder, str(_cache(folder))):
        data = _read_bytes(_join(place, _offsets_name(name)))
        if data is not None:
            column = pq.ParquetFile(io.BytesIO(data)).read(columns=["offset"], use_threads=False)["offset"]
            offsets: ndarray = column.to_numpy()
            return offsets
    return None


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
    with _replacing(tar.with_name(_offsets_name(tar.name))) as path:
        pq.write_table(table, path)


def write_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Add the sample counts of tars, by file name, to the folder's `sizes.json`."""
    merged = _read_sizes(str(folder)) | dict(sizes)
    with _replacing(folder / SIZES) as path:
        path.write_text(json.dumps(dict(sorted(merged.items())), indent=1) + "\n")


def _split(url: str) -> tuple[str, str]:
    """Folder and file name; a command is a name in a folder of its own kind."""
    if url.startswith(_PIPE):
        return _PIPE, url
    if is_local(url):
        return os.path.split(os.path.abspath(url))
    folder, _, name = url.rpartition("/")
    return folder, name


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}"


def _stem(name: str) -> str:
    for suffix in (".gz", ".tgz", ".tar"):
        name = name.removesuffix(suffix)
    return name


def _offsets_name(name: str) -> str:
    return f"{_stem(name)}.index.parquet"


def _folder_sizes(folder: str, names: Sequence[str]) -> dict[str, int]:
    home = _home(folder)
    known = _known_sizes(folder, home, names)
    if all(name in known for name in names):
        return known
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".index.lock"):
        known = _known_sizes(folder, home, names)  # another process may have counted meanwhile
        missing = [name for name in names if name not in known]
        if missing:
            known |= _count(folder, home, missing)
            write_sizes(home, {name: known[name] for name in missing})
            logger.info("indexed %d shards of %s; the index is in %s", len(missing), folder, home)
    return known


def _known_sizes(folder: str, home: Path, names: Sequence[str]) -> dict[str, int]:
    known = _read_sizes(folder)
    if str(home) == folder:
        return known
    cached = _read_sizes(str(home))
    if is_local(folder) and cached:
        asked, written = set(names), (home / SIZES).stat().st_mtime
        cached = {n: c for n, c in cached.items() if n in asked and _modified(folder, n) <= written}
    return cached | known


def _modified(folder: str, name: str) -> float:
    return os.stat(_join(folder, name)).st_mtime


def _read_sizes(folder: str) -> dict[str, int]:
    values = _read_json(_join(folder, SIZES))
    # open_clip's files may hold counts as strings
    return {name: int(count) for name, count in values.items()}


def _read_json(path: str) -> dict[str, Any]:
    """A small json file, local or not; empty if there is none."""
    data = _read_bytes(path)
    try:
        values = json.loads(data or "{}")
    except ValueError as error:
        raise DataError(f"{path} is no json: {error}; delete it to have the shards counted again") from None
    return values if isinstance(values, dict) else {}


def _read_bytes(path: str) -> bytes | None:
    if path.startswith(_PIPE):
        return None
    try:
        if is_local(path):
            return Path(path).read_bytes()
        with open_url(path) as file:
            data: bytes = file.read()
            return data
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # S3 forbids what is absent to those who may not list


def _home(folder: str) -> Path:
    """Where an index of this folder may be written."""
    # Root may write anywhere, but a folder whose write bits are all off is meant to stay as it is.
    if is_local(folder) and os.access(folder, os.W_OK) and os.stat(folder).st_mode & 0o222:
        return Path(folder)
    return _cache(folder)


def _cache(folder: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "vlm" / "index" / hashlib.sha256(folder.encode()).hexdigest()[:16]


def _count(folder: str, home: Path, names: Sequence[str]) -> dict[str, int]:
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda name: _count_shard(folder, home, name), names)
        bar = tqdm(counts, total=len(names), desc=f"indexing {folder}", unit="shard", delay=2)
        return dict(zip(names, bar, strict=True))


def _count_shard(folder: str, home: Path, name: str) -> int:
    statistics = _read_json(_join(folder, f"{_stem(name)}_stats.json")) if folder != _PIPE else {}
    if "successes" in statistics:
        return int(statistics["successes"])
    return _count_by_pass(name if folder == _PIPE else _join(folder, name), home)


def _count_by_pass(url: str, home: Path) -> int:
    try:
        return _pass(url, home / _split(url)[1])
    except IndexNotWrittenError:
        raise
    except Exception as error:
        raise DataError(f"{url} cannot be read to its end: {error or type(error).__name__}") from error


def _is_plain(url: str) -> bool:
    with open_shard(url) as file:
        return not is_compressed(file)


def _pass(url: str, tar: Path) -> int:
    """Count the samples of a tar by one pass over it, and keep the offsets where they mean something."""
    file = open_shard(url)
    plain = not is_compressed(file) and not url.startswith(_PIPE)
    reader = TarReader(file, url=url, members=frozenset())
    keys: list[str] = []
    starts = [reader.sample_offset]
    while sample := reader.read():
        keys.append(sample.key)
        starts.append(reader.sample_offset)
    reader.close()
    if plain:
        sizes = [stop - start for start, stop in pairwise(starts)]
        write_offsets(tar, keys, starts[:-1], sizes)
    return len(keys)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise IndexNotWrittenError(
            f"{path} cannot be written: {reason}; what was there is unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
