"""Hard negatives beside shards: shard by shard, in any order, and where an earlier start left off."""

import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

from vlm.curation.negatives.answers import ADVICE, UNANSWERED
from vlm.curation.negatives.captions import Captioned, read_captions
from vlm.curation.negatives.filters import Counts, Filters
from vlm.curation.negatives.maker import Corpus, LanguageOption, Maker, ReadyMaker
from vlm.curation.negatives.places import negative_places, pending_shards
from vlm.curation.negatives.report import write_report
from vlm.curation.negatives.tally import Record, ShardCounts
from vlm.data import open_shards
from vlm.data.negatives import Negative, write_negatives
from vlm.data.sidecar import check_name
from vlm.data.sources import as_strings
from vlm.data.tools.processes import Advance, number_of_workers, run_tasks
from vlm.data.train import check_samples
from vlm.errors import ConfigError, EndpointError
from vlm.files import writing

_ADVANCE_EVERY = 16


@dataclass(frozen=True, kw_only=True)
class Made:
    """What lies beside the shards at the end."""

    counts: ShardCounts
    places: tuple[Path, ...]
    report: Path
    new_captions: int
    """Those of this start, and how long they took."""
    new_negatives: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every process needs to know."""

    corpus: Corpus
    maker: ReadyMaker
    name: str
    filters: Filters
    seed: int
    made_by: str
    places: tuple[Path, ...]


def make_negatives(
    shards: str | Sequence[str],
    maker: Maker,
    *,
    captions: str | Sequence[str] | None,
    language: LanguageOption,
    name: str,
    out: str | None,
    report: Path,
    filters: Filters,
    seed: int,
    workers: int | None,
) -> Made:
    """Write hard negatives of all captions of shards, and a report; go on where an earlier start ended.

    A negative depends on its caption, the other captions of its sample, the seed and what the maker learned
    of the corpus, so that neither the number of processes nor an interruption changes any.

    Args:
        shards: patterns.
        captions: fields, as in `data.train.captions`; all captions of a sample get negatives.
        name: the negatives are `<shard>.<name>.parquet`.
        out: a folder for them. None: they lie beside the shards.
        report: a folder for the report, and for what goes into it when the work goes on.
        workers: processes. None: one for each core.

    Raises:
        ConfigError: a setting is out of range, no field is named, or negatives of another making are there.
        DataError: a shard cannot be read, or the first samples have no captions.
        OutputError: something cannot be written.
        EndpointError: a language model does not answer, or answers nothing about a shard.
    """
    check_name(name, key="name", folder="out")
    fields = _fields(captions)
    num_workers = number_of_workers(workers)
    shard_set = open_shards(shards, key="data.shards")
    places = negative_places(shard_set, name, out=out)
    check_samples(shard_set, fields, labels=None, prefix="")
    with writing(report):
        report.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(shards=shard_set, fields=fields, language=language, workers=num_workers, folder=report)
    ready = maker.ready(corpus)
    work = Work(
        corpus=corpus,
        maker=ready,
        name=maker.name,
        filters=filters,
        seed=seed,
        made_by=_made_by(maker.name, ready, corpus, filters, seed),
        places=places,
    )
    record = Record(report, made_by=work.made_by)
    pending = pending_shards(shard_set, places, record.known, made_by=work.made_by)
    began = perf_counter()
    new = _run(work, pending, record, num_workers if ready.threads is None else 1)
    seconds = perf_counter() - began
    counts = record.total(map(str, places))
    page = write_report(report, shard_set, places, counts, name=maker.name, seed=seed, fields=corpus.fields)
    return Made(
        counts=counts,
        places=places,
        report=page,
        new_captions=new.captions,
        new_negatives=new.kept,
        seconds=seconds,
    )


def _fields(captions: str | Sequence[str] | None) -> tuple[str, ...]:
    fields = as_strings(captions or ())
    if not fields or not all(fields):
        raise ConfigError(f"captions={captions!r} leaves out the field; name one, as txt or json.caption")
    return fields


def _made_by(name: str, ready: ReadyMaker, corpus: Corpus, filters: Filters, seed: int) -> str:
    said = [ready.identity, corpus.fields, corpus.language, filters.per_caption, filters.length_ratio, seed]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return f"vlm negatives maker={name} {digest[:16]}"


def _run(work: Work, pending: Sequence[int], record: Record, workers: int) -> ShardCounts:
    new = ShardCounts()
    total = sum(work.corpus.shards.sizes[shard] for shard in pending)
    shown = bool(pending) and sys.stderr.isatty()
    with tqdm(desc="making negatives", total=total, unit="sample", leave=False, disable=not shown) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        make = functools.partial(_make_shard, work)
        for shard, counts in run_tasks(
            make, pending, num_workers=max(1, min(workers, len(pending))), advance=advance
        ):
            record.add(str(work.places[shard]), counts)
            new.update(counts)
    return new


def _make_shard(work: Work, shard: int, advance: Advance) -> tuple[int, ShardCounts]:
    """Write the negatives of a shard; returns its number with what was made and dropped."""
    counts = ShardCounts()
    keys: list[str] = []
    rows: list[list[Negative]] = []
    for number, (sample, made, outcomes) in enumerate(_of_samples(work, shard), start=1):
        keys.append(sample.key)
        rows.append(made)
        counts.add_sample(sample.captions, outcomes)
        if number % _ADVANCE_EVERY == 0:
            advance(_ADVANCE_EVERY)
    advance(len(rows) % _ADVANCE_EVERY)
    _check_answered(work.corpus.shards.urls[shard], counts)
    place = work.places[shard]
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_negatives(place, keys, rows, maker=work.name, seed=work.seed, made_by=work.made_by)
    return shard, counts


def _check_answered(shard: str, counts: ShardCounts) -> None:
    """A shard that is written is not asked about again."""
    causes = {outcome for _, outcome in counts.outcomes}
    if causes and causes <= UNANSWERED:
        raise EndpointError(
            f"no question about the captions of {shard} was answered ({', '.join(sorted(causes))}); no "
            f"negatives are written for it. {ADVICE}, or leave out the shard, then type the command again"
        )


def _of_samples(work: Work, shard: int) -> Iterator[tuple[Captioned, list[Negative], Counts]]:
    samples = read_captions(work.corpus.shards, shard, work.corpus.fields)
    if work.maker.threads is None:
        yield from (_of_sample(work, sample) for sample in samples)
        return
    with ThreadPoolExecutor(work.maker.threads) as threads:
        try:
            yield from threads.map(functools.partial(_of_sample, work), samples)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _of_sample(work: Work, sample: Captioned) -> tuple[Captioned, list[Negative], Counts]:
    outcomes: Counts = Counter()
    all_candidates = work.maker.candidates(sample.captions, seed=work.seed)
    made = [
        negative
        for caption, candidates in zip(sample.captions, all_candidates, strict=True)
        for negative in work.filters.choose(caption, sample.captions, candidates, outcomes)
    ]
    return sample, made, outcomes
