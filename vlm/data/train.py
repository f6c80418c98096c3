"""Training data as the configuration describes it, checked before anything is read."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vlm.data.cache import ShardCache
from vlm.data.labels import CLS, LabelSidecars, check_labels, in_words
from vlm.data.loader import OrderedSource, Tokenize, TrainBatches
from vlm.data.negatives import NegativeSidecars, check_negatives
from vlm.data.order import Order
from vlm.data.remote import Remote
from vlm.data.samples import (
    IMAGE_EXTENSIONS,
    BrokenSampleError,
    decode_record,
    field_names,
    members_of,
    record_captions,
)
from vlm.data.shards import BrokenShardError, Rows, ShardCursor, ShardSet, open_shards
from vlm.data.sources import Source, as_strings
from vlm.data.tar import RawSample
from vlm.data.transforms import Augment, Preprocess
from vlm.data.workers import NumberedLoader
from vlm.errors import ConfigError, DataError
from vlm.types import Batch

# How many samples of a source are looked at before training.
_PEEK = 16


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What to train on, and in which order.

    Args:
        train: the main source; an epoch is an epoch of it.
        mix: further sources by name, each with its `share` of every batch; `train` has the rest.
        augment: None cuts every image as `preprocess` does.
        global_batch_size: samples of all ranks in one batch.
        stream_groups: G; batch b is read from group b mod G, so a loader worker serves whole groups.
        streams_per_group: P; a rank reads its slice of the streams of every group.
        shuffle_samples: undecoded samples that are permuted among themselves, over all streams; ranks and
            workers together hold at most twice as many.
        num_workers: loader processes of each rank; 0 loads in the training process.
        max_broken_share: a larger share of broken samples ends the run.
        remote: how patient to be with shards that are not local.
        cache: where copies of them are kept.

    Raises:
        ConfigError: a number is out of range or does not divide as the order needs.
    """

    train: Source
    mix: Mapping[str, Source]
    preprocess: Preprocess
    augment: Augment | None
    global_batch_size: int
    stream_groups: int
    streams_per_group: int
    shuffle_samples: int
    num_workers: int
    max_broken_share: int | float
    remote: Remote
    cache: ShardCache
    seed: int

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "stream_groups", "streams_per_group", "shuffle_samples"):
            _check_at_least(1, name, getattr(self, name))
        for name in ("num_workers", "seed"):
            _check_at_least(0, name, getattr(self, name))
        if self.num_workers and self.stream_groups % self.num_workers:
            raise ConfigError(
                f"data.num_workers={self.num_workers} does not divide data.stream_groups="
                f"{self.stream_groups}; use {_alternatives(self.worker_counts)}"
            )
        if self.global_batch_size % self.streams_per_group:
            raise ConfigError(
                f"data.streams_per_group={self.streams_per_group} does not divide data.global_batch_size="
                f"{self.global_batch_size}; use {_alternatives(_divisors(self.global_batch_size))}"
            )
        if not 0 <= self.max_broken_share <= 1:
            raise ConfigError(f"data.max_broken_share={self.max_broken_share} must be a share from 0 to 1")
        self._check_shares()
        for key, source in self._sources.items():
            check_labels(source, key=key)
            check_negatives(source, key=key)
        for name in ("captions", "labels"):
            self._check_alike(name)

    @property
    def worker_counts(self) -> list[int]:
        """Values that `num_workers` may have, ascending."""
        return [0, *_divisors(self.stream_groups)]

    def check_world_size(self, world_size: int) -> None:
        """Check that every rank gets the same number of streams.

        Raises:
            ConfigError: it does not divide.
        """
        if self.streams_per_group % world_size:
            raise ConfigError(
                f"{world_size} ranks do not divide data.streams_per_group={self.streams_per_group}; run "
                f"{_alternatives(_divisors(self.streams_per_group))} ranks, or set data.streams_per_group to "
                f"a multiple of {world_size} that divides data.global_batch_size={self.global_batch_size}"
            )

    def check_tokenizer(self, tokenizer: object | None) -> None:
        """Check that there is a tokenizer if there are captions, and none if there are not.

        Raises:
            ConfigError: one of them is there alone.
        """
        captions = self.train.captions
        if captions is None and tokenizer is not None:
            raise ConfigError(
                "data.train.captions=null leaves nothing for the tokenizer; set tokenizer=none, or name "
                "captions"
            )
        if captions is not None and tokenizer is None:
            raise ConfigError(
                "tokenizer=none cannot read captions; set data.train.captions=null, or name a tokenizer"
            )

    def open(self) -> "TrainSet":
        """Find the shards, count their samples (the counts are kept) and look at the first ones.

        Every rank may call this at the same time.

        Raises:
            DataError: shards are missing or unreadable, have no captions or labels, or too few samples for
                one batch.
        """
        rest = self.global_batch_size
        sources = []
        for name, source in self.mix.items():
            batch_size = round((source.share or 0) * self.global_batch_size)
            rest -= batch_size
            sources.append(self._open_source(source, key=f"data.mix.{name}", batch_size=batch_size))
        first = self._open_source(self.train, key="data.train", batch_size=rest)
        _check_classes([first, *sources])
        return TrainSet(self, (first, *sources))

    def _open_source(self, source: Source, *, key: str, batch_size: int) -> OrderedSource:
        shards = open_shards(source.shards, key=f"{key}.shards", remote=self.remote, cache=self.cache)
        if shards.num_samples < batch_size:
            raise DataError(
                f"{key}.shards hold {shards.num_samples} samples, fewer than the {batch_size} of them in "
                f"each batch (data.global_batch_size={self.global_batch_size}); lower it or add shards"
            )
        captions = as_strings(source.captions or ())
        check_samples(shards, captions, labels=source.labels, prefix=f"{key}.")
        negatives = NegativeSidecars.of(source, shards, key=key)
        if negatives is not None:
            _check_negatives(shards, captions, negatives)
        held = self.shuffle_samples * batch_size // self.global_batch_size
        order = Order(
            shard_sizes=shards.sizes,
            batch_size=batch_size,
            num_groups=self.stream_groups,
            streams_per_group=self.streams_per_group,
            window=max(1, held // (self.stream_groups * self.streams_per_group)),
            seed=(self.seed, zlib.crc32(key.encode())),
        )
        return OrderedSource(
            key=key,
            captions=captions,
            labels=source.labels,
            label_sidecars=LabelSidecars.of(source, shards, key=key),
            negatives=negatives,
            num_negatives=source.num_negatives,
            shards=shards,
            order=order,
        )

    @property
    def _sources(self) -> dict[str, Source]:
        """Every source by its key."""
        return {"data.train": self.train} | {f"data.mix.{name}": mixed for name, mixed in self.mix.items()}

    def _check_alike(self, name: str) -> None:
        """A batch has an entry for all of its rows, or for none."""
        for key, source in self._sources.items():
            if (getattr(source, name) is None) != (getattr(self.train, name) is None):
                raise ConfigError(
                    f"of data.train.{name} and {key}.{name} one is null; name {name} for every source, or "
                    "for none"
                )

    def _check_shares(self) -> None:
        if self.train.share is not None:
            raise ConfigError("data.train.share must be null: it has what the sources of data.mix leave")
        for name, source in self.mix.items():
            _check_share(
                source.share,
                key=f"data.mix.{name}.share",
                batch_size=self.global_batch_size,
                multiple=self.streams_per_group,
            )
        total = sum(source.share or 0 for source in self.mix.values())
        if total > 1 - 0.5 / self.global_batch_size:
            raise ConfigError(f"the shares of data.mix add up to {total:g} and leave nothing for data.train")


class TrainSet:
    """Training data whose shards are found and counted."""

    def __init__(self, data: TrainData, sources: tuple[OrderedSource, ...]) -> None:
        self._data = data
        self._sources = sources

    @property
    def sources(self) -> tuple[OrderedSource, ...]:
        """`data.train`, then those of `data.mix`."""
        return self._sources

    @property
    def num_samples(self) -> int:
        """Samples of `data.train`."""
        return self._sources[0].order.num_samples

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch of `data.train`; the other sources have epochs of their own."""
        return self._sources[0].order.batches_per_epoch

    @property
    def num_classes(self) -> int | None:
        """Classes that the labels may name, where sidecars say it."""
        origin = self._sources[0].labels_origin
        return origin.num_classes if origin else None

    @property
    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What tells these shards from others, by source: names, sample counts and sizes of local files.

        Where there are sidecars also a digest of the first.
        """
        return {source.key: source.fingerprint for source in self._sources}

    def beside(self, stored: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """By source, what an earlier `fingerprint` says and what is true now; equal where it is the same.

        What only one of the two knows, as the sizes of local files, is left out of both.
        """
        return {key: _comparable(stored.get(key), now) for key, now in self.fingerprint.items()}

    def loader(
        self, tokenizer: Tokenize | None, *, start_step: int, stop_step: int, rank: int, world_size: int
    ) -> NumberedLoader[Batch]:
        """This rank's rows of the batches of global steps start_step … stop_step − 1.

        Args:
            tokenizer: captions to token ids; called once a batch, in the worker. None without captions.

        Raises:
            ConfigError: the ranks do not divide the streams, or there are captions or a tokenizer alone.
        """
        self._data.check_world_size(world_size)
        self._data.check_tokenizer(tokenizer)
        batches = TrainBatches(
            self._sources,
            tokenizer,
            preprocess=self._data.preprocess,
            augment=self._data.augment,
            start=start_step,
            stop=stop_step,
            rank=rank,
            world_size=world_size,
        )
        return NumberedLoader(batches, num_workers=self._data.num_workers)

    def captions(self, limit: int) -> Iterator[str]:
        """Every caption, in stored order, without reading images.

        Args:
            limit: roughly how many, of each source by its share of a batch.
        """
        for source in self._sources:
            share = source.order.batch_size / self._data.global_batch_size
            yield from islice(_stored_captions(source), math.ceil(limit * share))


def _comparable(before: Any, now: dict[str, Any]) -> tuple[Any, Any]:
    both = [name for name in now if isinstance(before, Mapping) and name in before]
    return (
        ({name: before[name] for name in both}, {name: now[name] for name in both}) if both else (before, now)
    )


def _stored_captions(source: OrderedSource) -> Iterator[str]:
    with closing(ShardCursor(source.shards, members_of(source.captions))) as cursor:
        for shard, size in enumerate(source.shards.sizes):
            for row in range(size):
                try:
                    record = decode_record(cursor.read(shard, row))
                except (BrokenSampleError, BrokenShardError):  # training counts and names it
                    if cursor.is_lost(shard, row):
                        break
                    continue
                for captions in record_captions(record, source.captions):
                    yield from captions


def _check_classes(sources: Sequence[OrderedSource]) -> None:
    """A number names one class in a batch, whichever source its row is from."""
    known = {source.key: source.labels_origin for source in sources if source.labels}
    if len(set(known.values())) > 1:
        said = "; ".join(
            f"{key}.labels: {'of the member cls' if origin is None else in_words(origin)}"
            for key, origin in known.items()
        )
        raise DataError(f"sources in one batch need labels of one making, but {said}")


def check_samples(shards: ShardSet, fields: tuple[str, ...], *, labels: str | None, prefix: str) -> None:
    """Look at the first samples: a wrong field name should not wait for the first batch.

    Args:
        fields: of captions; none: they are not looked for.
        prefix: of the keys `captions` and `labels`, for messages.

    Raises:
        DataError: none of them has a caption, a class where it is asked for, and an image.
    """
    seen: dict[str, None] = {}
    for raw, record in _first_samples(shards, None):
        has_image = any(extension in raw.members for extension in IMAGE_EXTENSIONS)
        has_caption = not fields or record_captions(record, fields)
        if has_image and has_caption and (labels != CLS or CLS in record):
            return
        seen |= dict.fromkeys([*raw.members, *field_names(record)])
    wanted = [f"{' or '.join(fields)} ({prefix}captions)"] if fields else []
    wanted += [f"{CLS} ({prefix}labels)"] if labels == CLS else []
    beside = f"{' and '.join(wanted)} beside an image" if wanted else "an image"
    raise DataError(
        f"none of the first samples of {shards.urls[0]} has {beside} ({', '.join(IMAGE_EXTENSIONS)}); "
        f"they have: {', '.join(seen) or 'nothing readable'}"
    )


def _check_negatives(shards: ShardSet, fields: tuple[str, ...], negatives: NegativeSidecars) -> None:
    """Look whether the hard negatives of the first samples are of their captions."""
    other = None
    for raw, record in _first_samples(shards, members_of(fields), {"negatives": negatives.read}):
        negatives.check_key(raw)
        own = [caption for captions in record_captions(record, fields) for caption in captions]
        of = [negative.caption.strip() for negative in raw.beside["negatives"].negatives]
        if set(own) & set(of):
            return
        if own and of:
            other = own[0], of[0]
    if other is not None:
        negatives.refuse(*other)


def _first_samples(
    shards: ShardSet, members: frozenset[str] | None, beside: Mapping[str, Callable[[int], Rows]] = {}
) -> Iterator[tuple[RawSample, dict[str, Any]]]:
    """The first samples and their texts, but for broken ones; arguments as of `ShardCursor`."""
    with closing(ShardCursor(shards, members, beside)) as cursor:
        for sample in range(min(_PEEK, shards.num_samples)):
            try:
                raw = cursor.read(*shards.locate(sample))
                record = decode_record(raw)
            except (BrokenSampleError, BrokenShardError):
                continue
            yield raw, record


def _check_at_least(least: int, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"data.{name}={value!r} must be a whole number of at least {least}")


def _check_share(share: float | None, *, key: str, batch_size: int, multiple: int) -> None:
    if share is None or not 0 < share < 1:
        raise ConfigError(f"{key}={share} must be a share of every batch between 0 and 1")
    samples = share * batch_size
    if abs(samples - round(samples)) > 1e-6 * batch_size or round(samples) % multiple:
        raise ConfigError(
            f"{key}={share:g} of data.global_batch_size={batch_size} is {samples:g} samples, which is no "
            f"multiple of data.streams_per_group={multiple}; use a multiple of {multiple / batch_size:g}, "
            f"or lower data.streams_per_group"
        )


def _divisors(value: int) -> list[int]:
    return [divisor for divisor in range(1, value + 1) if value % divisor == 0]


def _alternatives(values: list[int] | list[str]) -> str:
    names = [str(value) for value in values]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
