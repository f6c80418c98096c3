"""What is in one shard, read from its first to its last byte."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt64
from numpy import ndarray

from vlm.data.index import read_offsets
from vlm.data.samples import (
    IMAGE_EXTENSIONS,
    BrokenSampleError,
    decode_record,
    field_names,
    lookup,
    record_captions,
    sample_image,
)
from vlm.data.tar import RawSample, TarReader, open_shard
from vlm.data.tokenizers import Tokenizer
from vlm.data.tools.processes import Advance
from vlm.errors import DataError

NO_IMAGE = "no image"
UNREADABLE_IMAGE = "unreadable image"
NO_CAPTION = "no caption"
CUT_SHORT = "shard cut short"
UNREADABLE_SHARD = "unreadable shard"
WRONG_INDEX = "index that is wrong"
MAX_NAMED = 20
"""Findings of a kind that are named; the rest is counted."""
_ADVANCE_EVERY = 16

Measure = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """A shard to read.

    Args:
        size: what its index says, None where there is none.
        decode: whether to decode every image.
        tokenizer: a `tokenizer.json` that measures captions; None counts characters.
    """

    url: str
    size: int | None
    captions: tuple[str, ...]
    decode: bool
    tokenizer: str | None


@dataclass(kw_only=True)
class ShardScan:
    """Counts of a shard, and by what the whole set is searched for doubles."""

    url: str
    samples: int = 0
    size: int = 0
    """Bytes of the members."""
    members: Counter[str] = field(default_factory=Counter)
    """Samples with each extension."""
    fields: Counter[str] = field(default_factory=Counter)
    """Samples with a caption in each field."""
    counts: Counter[str] = field(default_factory=Counter)
    """Findings by kind."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """The first findings of each kind."""
    keys: str = ""
    """Of each sample, ended by a null byte each: a tenth of the memory of a list."""
    image_hashes: UInt64[ndarray, "n"] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of each sample, 0 where it has no image."""
    lengths: Int64[ndarray, "m"] = field(default_factory=lambda: np.empty(0, np.int64))
    """Of every caption, in tokens or characters."""

    def note(self, kind: str, text: str) -> None:
        """Count a finding, and name it if it is among the first of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_NAMED:
            self.named.setdefault(kind, []).append(text)


def scan_shard(task: ScanTask, advance: Advance) -> ShardScan:
    """Read a shard and everything in it; what is wrong with it is in the result."""
    scan = ShardScan(url=task.url)
    keys: list[str] = []
    hashes: list[int] = []
    places: list[int] = []
    lengths: list[int] = []
    measure: Measure = Tokenizer.load(task.tokenizer).lengths if task.tokenizer else _count_characters
    try:
        with open_shard(task.url) as file:
            reader = TarReader(file, url=task.url, members=None)
            places.append(reader.sample_offset)
            while sample := reader.read():
                places.append(reader.sample_offset)
                keys.append(f"{sample.key}\0")
                hashes.append(_image_hash(sample))
                lengths += measure(_scan_sample(sample, task, scan))
                if scan.samples % _ADVANCE_EVERY == 0:
                    advance(_ADVANCE_EVERY)
            if not scan.samples:
                scan.note(CUT_SHORT, f"{task.url} holds no sample")
            elif not reader.has_end:
                scan.note(CUT_SHORT, f"{task.url} has no end of a tar after {scan.samples} samples")
    except Exception as error:  # whatever stops the reader stops training as well
        reason = str(error) or type(error).__name__
        scan.note(UNREADABLE_SHARD, f"{task.url} after {scan.samples} samples: {reason}")
    scan.keys = "".join(keys)
    scan.image_hashes, scan.lengths = np.array(hashes, np.uint64), np.array(lengths, np.int64)
    advance(scan.samples % _ADVANCE_EVERY)
    _compare_index(task, scan, places[: scan.samples])
    return scan


def _compare_index(task: ScanTask, scan: ShardScan, places: Sequence[int]) -> None:
    """Note where the index does not say what was found; what hides behind damage is no fault of the index."""
    if task.size is not None and task.size != scan.samples:
        scan.note(WRONG_INDEX, f"{task.url} holds {scan.samples} samples, its index says {task.size}")
        return
    try:
        offsets = read_offsets(task.url)
    except DataError as error:
        scan.note(WRONG_INDEX, str(error))
        return
    if offsets is not None and not np.array_equal(offsets, places):
        what = f"{len(offsets)} rows" if len(offsets) != len(places) else "other places"
        scan.note(WRONG_INDEX, f"{task.url} holds {len(places)} samples, its index.parquet has {what}")


def _scan_sample(sample: RawSample, task: ScanTask, scan: ShardScan) -> list[str]:
    """Look at a sample, and return its captions."""
    scan.samples += 1
    scan.size += sum(map(len, sample.members.values()))
    scan.members.update(sample.members.keys())
    if not sample.members.keys() & set(IMAGE_EXTENSIONS):
        scan.note(NO_IMAGE, f"{sample.name} has {', '.join(sample.members) or 'nothing'}")
    elif reason := _unreadable(sample, decode=task.decode):
        scan.note(UNREADABLE_IMAGE, f"{sample.name}: {reason}")
    try:
        record = decode_record(sample)
    except BrokenSampleError as error:
        scan.note(NO_CAPTION, f"{sample.name}: {error}")
        return []
    captions = {name: group for name in task.captions for group in record_captions(record, [name])}
    scan.fields.update(captions.keys())
    if not captions:
        present = [name for name in task.captions if lookup(record, name) is not None]
        texts = [name for name in record if name != "key" and isinstance(record[name], str)]
        others = ", ".join([*texts, *field_names(record)]) or "no other text"
        what = f"is empty in {', '.join(present)}" if present else f"has no {', '.join(task.captions)}"
        what += "" if present else f", but {others}"
        scan.note(NO_CAPTION, f"{sample.name} {what}")
    return [caption for group in captions.values() for caption in group]


def _unreadable(sample: RawSample, *, decode: bool) -> str | None:
    try:
        image = sample_image(sample)
        if decode:
            image.load()
    except Exception as error:  # damaged files make Pillow raise almost anything
        return str(error) or type(error).__name__
    return None


def _count_characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def _image_hash(sample: RawSample) -> int:
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.members:
            digest = hashlib.blake2b(sample.members[extension], digest_size=8).digest()
            return int.from_bytes(digest, "big") or 1
    return 0
