"""What is wrong with shards, before a training finds it out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from tqdm import tqdm

from vlm.data.index import stored_sizes
from vlm.data.sources import as_strings, expand_shards
from vlm.data.tokenizers import Tokenizer
from vlm.data.tools.processes import number_of_workers, run_tasks
from vlm.data.tools.shard_scan import (
    CUT_SHORT,
    MAX_NAMED,
    NO_CAPTION,
    NO_IMAGE,
    UNREADABLE_IMAGE,
    UNREADABLE_SHARD,
    WRONG_INDEX,
    ScanTask,
    ShardScan,
    scan_shard,
)
from vlm.files import write_json, writing

ERRORS = (UNREADABLE_SHARD, CUT_SHORT, WRONG_INDEX, NO_IMAGE, UNREADABLE_IMAGE, NO_CAPTION)
"""What training would replace or stop at."""
SAME_KEY = "key of another sample"
SAME_IMAGE = "image of another sample"
TOO_LONG = "caption that is cut"
WARNINGS = (SAME_KEY, SAME_IMAGE, TOO_LONG)
"""What is worth a look."""
_QUANTILES = {"median": 0.5, "99 %": 0.99, "longest": 1.0}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in a set of shards."""

    shards: int
    samples: int
    size: int
    """Bytes of all members."""
    members: dict[str, int]
    """Samples with each extension."""
    fields: dict[str, int]
    """Samples with a caption in each field."""
    unit: str
    """What captions are measured in."""
    context_length: int | None
    lengths: dict[str, int]
    """Median, 99 % and longest of the captions."""
    counts: dict[str, int]
    """Findings by kind; `TOO_LONG` only where a tokenizer counts."""
    named: dict[str, list[str]]
    """The first findings of each kind."""

    @property
    def errors(self) -> int:
        """Findings that training would replace or stop at."""
        return sum(self.counts[kind] for kind in ERRORS)

    def to_mapping(self) -> dict[str, Any]:
        """Everything, as data that json can hold."""
        return {"errors": self.errors, **self.__dict__}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Reads shards from first to last byte and counts what is wrong with them.

    Finding doubles takes about 50 bytes of memory for each sample.

    Args:
        shards: patterns, as in `data.train.shards`.
        captions: fields, as in `data.train.captions`.
        tokenizer_path: a `tokenizer.json` that measures captions against its context; None counts characters.
        decode: whether to decode every image.
        out: file for the findings.
        workers: processes. None: one for each core.

    Raises:
        ConfigError: `workers` is below 1.
        DataError: there are no such shards, or no such tokenizer.
    """

    shards: str | Sequence[str]
    captions: str | Sequence[str]
    tokenizer_path: str | None
    decode: bool
    out: str
    workers: int | None

    def __post_init__(self) -> None:
        number_of_workers(self.workers)

    def run(self) -> Findings:
        """Read everything and write `out`."""
        urls = expand_shards(self.shards, key="shards")
        context_length = Tokenizer.load(self.tokenizer_path).context_length if self.tokenizer_path else None
        scans = self._scan(urls)
        findings = _merge(scans, as_strings(self.captions), context_length=context_length)
        out = Path(self.out)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, findings.to_mapping(), indent=1)
        return findings

    def _scan(self, urls: Sequence[str]) -> list[ShardScan]:
        """One result for each shard, in their order."""
        sizes = stored_sizes(urls)
        captions = as_strings(self.captions)
        tasks = [
            ScanTask(url=url, size=size, captions=captions, decode=self.decode, tokenizer=self.tokenizer_path)
            for url, size in zip(urls, sizes, strict=True)
        ]
        known = [size for size in sizes if size is not None]
        total = sum(known) if len(known) == len(sizes) else None
        workers = min(number_of_workers(self.workers), len(urls))
        with tqdm(total=total, desc="checking", unit="image", disable=None) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            scans = {
                scan.url: scan for scan in run_tasks(scan_shard, tasks, num_workers=workers, advance=advance)
            }
        return [scans[url] for url in urls]


def _merge(scans: Sequence[ShardScan], captions: Sequence[str], *, context_length: int | None) -> Findings:
    """Add up the shards, and search them for doubles."""
    counts: Counter[str] = Counter(dict.fromkeys(ERRORS, 0))
    named: dict[str, list[str]] = {}
    for scan in scans:
        counts.update(scan.counts)
        for kind, texts in scan.named.items():
            named[kind] = [*named.get(kind, []), *texts][:MAX_NAMED]
    lengths = np.concatenate([np.asarray(scan.lengths, np.int64) for scan in scans])
    if context_length is not None:
        counts[TOO_LONG] = int((lengths > context_length).sum())
    images = np.concatenate([np.asarray(scan.image_hashes, np.uint64) for scan in scans])
    keys = np.array([hash(key) for scan in scans for key in scan.keys.split("\0")[:-1]], np.int64)
    for kind, values in ((SAME_KEY, keys.view(np.uint64)), (SAME_IMAGE, images)):
        doubles = _doubles(values)
        counts[kind] = len(doubles)
        pairs = [(_name(scans, int(first)), _name(scans, int(other))) for first, other in doubles[:MAX_NAMED]]
        named[kind] = [f"{other} has that of {first}" for first, other in pairs]
    members: Counter[str] = sum((scan.members for scan in scans), Counter())
    fields: Counter[str] = sum((scan.fields for scan in scans), Counter())
    return Findings(
        shards=len(scans),
        samples=sum(scan.samples for scan in scans),
        size=sum(scan.size for scan in scans),
        members=dict(members.most_common()),
        fields={name: fields[name] for name in captions},
        unit="characters" if context_length is None else "tokens",
        context_length=context_length,
        lengths={name: _quantile(lengths, share) for name, share in _QUANTILES.items()},
        counts=dict(counts),
        named={kind: texts for kind, texts in named.items() if texts},
    )


def _doubles(hashes: ndarray) -> ndarray:
    """Rows whose hash an earlier row has, each behind the first row that has it; 0 is nobody's double."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.zeros(len(order), bool)
    same[1:] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    pairs = np.stack([order[first[same]], order[same]], axis=1)
    return pairs[np.argsort(pairs[:, 1])]


def _name(scans: Sequence[ShardScan], row: int) -> str:
    for scan in scans:
        if row < scan.samples:
            return f"{scan.url}/{scan.keys.split(chr(0))[row]}"
        row -= scan.samples
    raise IndexError(row)


def _quantile(values: ndarray, share: float) -> int:
    return int(np.quantile(values, share, method="higher")) if len(values) else 0
