"""The batches of one rank, made in loader workers."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vlm.broken import BrokenSample, Cause
from vlm.data.images import UnreadableImageError
from vlm.data.labels import CLS, LabelSidecars, Origin, class_of
from vlm.data.negatives import NegativeSidecars, draw_negatives
from vlm.data.order import Order
from vlm.data.samples import (
    IMAGE_EXTENSIONS,
    BrokenSampleError,
    decode_record,
    draw_caption,
    members_of,
    sample_image,
)
from vlm.data.shards import ShardCursor, ShardSet
from vlm.data.sidecar import Sidecars
from vlm.data.stream import WindowedStream
from vlm.data.tar import RawSample
from vlm.data.transforms import Augment, Preprocess
from vlm.data.workers import Numbered
from vlm.errors import DataError
from vlm.types import Batch

logger = logging.getLogger(__name__)

Tokenize = Callable[[Sequence[str]], Int64[Tensor, "n l"]]

# Each worker warns of this many broken samples; all of them are in `Batch["broken"]`.
_MAX_WARNINGS = 20

# Causes that a shard's samples share: one warning is enough.
_OF_THE_SHARD = (Cause.DAMAGED_SHARD, Cause.MISSING_SHARD)


class Example(NamedTuple):
    """One row of a batch."""

    key: str
    image: UInt8[Tensor, "3 h w"]
    caption: str
    labels: tuple[int, ...]
    negatives: tuple[str, ...]


class Slot(NamedTuple):
    """One place of the order: the seed of its random draws, and the samples that may fill it."""

    seed: str
    candidates: Iterator[RawSample | BrokenSample]


@dataclass(frozen=True, kw_only=True)
class OrderedSource:
    """Shards with the order in which training reads them.

    Args:
        captions: fields; none: images alone.
        labels: as the configuration names them.
        label_sidecars: that hold the labels, unless the member `cls` does.
        negatives: sidecars with hard negatives of the captions.
        num_negatives: of a caption, at most.
    """

    key: str
    captions: tuple[str, ...]
    labels: str | None
    label_sidecars: LabelSidecars | None
    negatives: NegativeSidecars | None
    num_negatives: int
    shards: ShardSet
    order: Order

    @property
    def num_labels(self) -> int:
        """Labels that a sample has at most."""
        return self.label_sidecars.width if self.label_sidecars else int(self.labels == CLS)

    @property
    def labels_origin(self) -> Origin | None:
        """What made the labels, where they are in sidecars."""
        return self.label_sidecars.origin if self.label_sidecars else None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the shards, and a digest of what lies beside the first."""
        digests = {f"{name}_sha256": sidecars.digest for name, sidecars in self._sidecars.items()}
        return {**self.shards.fingerprint, **digests}

    @property
    def _sidecars(self) -> dict[str, Sidecars[Any]]:
        found = {"labels": self.label_sidecars, "negatives": self.negatives}
        return {name: sidecars for name, sidecars in found.items() if sidecars is not None}

    def cursor(self) -> ShardCursor:
        """A reader of what an example is made of."""
        fields = (*self.captions, CLS) if self.labels == CLS else self.captions
        members = members_of(fields) | frozenset(IMAGE_EXTENSIONS)
        beside = {name: sidecars.read for name, sidecars in self._sidecars.items()}
        return ShardCursor(self.shards, members, beside)

    def caption_of(self, record: Mapping[str, Any], *, rng: random.Random) -> str:
        """One of a sample's captions, or nothing where the source has none.

        Raises:
            BrokenSampleError: the sample has none.
        """
        return draw_caption(record, self.captions, rng=rng) if self.captions else ""

    def labels_of(self, raw: RawSample, record: Mapping[str, Any]) -> tuple[int, ...]:
        """A sample's labels, `num_labels` at most.

        Raises:
            BrokenSampleError: its cls is no class.
        """
        return class_of(record) if self.labels == CLS else raw.beside.get("labels", ())[: self.num_labels]

    def negatives_of(self, raw: RawSample, caption: str, *, seed: str) -> tuple[str, ...]:
        """Hard negatives of a caption of a sample, `num_negatives` at most.

        Args:
            seed: of the sample's draws. These are of a generator of their own, so that with and without them
                the pixels are the same.

        Raises:
            DataError: those that were read are of another sample.
        """
        if self.negatives is None:
            return ()
        self.negatives.check_key(raw)
        rng = random.Random(f"{seed}/negatives")
        return draw_negatives(raw.beside["negatives"], caption, count=self.num_negatives, rng=rng)


class SourceReader:
    """Reads one rank's rows of a source, a batch at a time, in one worker."""

    def __init__(self, source: OrderedSource, *, rank: int, world_size: int) -> None:
        self.source = source
        share = source.order.streams_per_group // world_size
        self._streams_of_rank = range(rank * share, (rank + 1) * share)
        self._epoch = -1
        self._open: dict[tuple[int, int], WindowedStream] = {}
        self._spare = source.cursor()

    def slots(self, step: int) -> Iterator[Slot]:
        """The places of this rank's rows in the batch of a global step."""
        order = self.source.order
        epoch, batch = order.locate(step)
        turn, group = divmod(batch, order.num_groups)
        first = turn * order.stream_batch
        for stream in self._streams_of_rank:
            reading = self._stream(epoch, group, stream, position=first)
            reading.advance(first, order.stream_batch)
            start = batch * order.batch_size + stream * order.stream_batch
            for i in range(order.stream_batch):
                yield Slot(f"{order.seed}/{epoch}/{start + i}", reading.candidates(first + i))

    def _stream(self, epoch: int, group: int, stream: int, *, position: int) -> WindowedStream:
        if epoch != self._epoch:
            for finished in self._open.values():
                finished.close()
            self._open.clear()
            self._epoch = epoch
        if (group, stream) not in self._open:
            self._open[group, stream] = WindowedStream(
                self.source.order,
                self.source.cursor(),
                self._spare,
                epoch=epoch,
                group=group,
                stream=stream,
                position=position,
            )
        return self._open[group, stream]


class TrainBatches(Numbered[Batch]):
    """This rank's rows of the global batches start … stop − 1."""

    def __init__(
        self,
        sources: Sequence[OrderedSource],
        tokenizer: Tokenize | None,
        *,
        preprocess: Preprocess,
        augment: Augment | None,
        start: int,
        stop: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(start, stop)
        self._sources = tuple(sources)
        self._tokenizer = tokenizer
        self._num_labels = max(source.num_labels for source in sources)
        self._num_negatives = max(source.num_negatives for source in sources)
        self._preprocess = preprocess
        self._augment = augment
        self._rank = rank
        self._world_size = world_size
        self._warnings_left = _MAX_WARNINGS
        self._named_shards: set[str] = set()

    def items(self, numbers: range) -> Iterator[Batch]:
        """Make the batches of these steps."""
        readers = [SourceReader(s, rank=self._rank, world_size=self._world_size) for s in self._sources]
        for step in numbers:
            yield self._batch(step, readers)

    def _batch(self, step: int, readers: Sequence[SourceReader]) -> Batch:
        rows = [self._fill(slot, reader.source) for reader in readers for slot in reader.slots(step)]
        examples = [example for example, _ in rows]
        batch = Batch(
            key=[example.key for example in examples],
            image=torch.stack([example.image for example in examples]),
            broken=[broken for _, broken in rows if broken is not None],
        )
        if self._tokenizer is not None:
            batch |= self._texts(examples, self._tokenizer)
            batch["caption_id"] = torch.tensor([_fingerprint(example.caption) for example in examples])
        if self._num_labels:
            batch["label"] = _padded([example.labels for example in examples], self._num_labels)
        return batch

    def _texts(self, examples: Sequence[Example], tokenizer: Tokenize) -> Batch:
        """Captions and their hard negatives, of one length; an empty text where there are fewer."""
        captions, count = [example.caption for example in examples], self._num_negatives
        if not count:
            return Batch(text=tokenizer(captions))
        padded = [[*example.negatives, *[""] * (count - len(example.negatives))] for example in examples]
        text = tokenizer([*captions, *chain(*padded)])
        there = torch.tensor([[place < len(e.negatives) for place in range(count)] for e in examples])
        own, negatives = text[: len(captions)], text[len(captions) :].view(len(captions), count, -1)
        # Where both are cut to the same tokens, a negative is the caption.
        differs = (negatives != own[:, None]).any(2)
        return Batch(text=own, negative_text=negatives, negative_mask=there & differs)

    def _fill(self, slot: Slot, source: OrderedSource) -> tuple[Example, BrokenSample | None]:
        """The first sample of the slot that is whole, and the broken one whose place it takes, if any."""
        broken: list[BrokenSample] = []
        for raw in slot.candidates:
            if isinstance(raw, BrokenSample):
                broken.append(raw)
                self._warn(raw)
                continue
            try:
                example = self._example(raw, source, seed=slot.seed)
            except (BrokenSampleError, UnreadableImageError) as error:
                broken.append(BrokenSample(error.cause, raw.shard, raw.key, str(error)))
                self._warn(broken[-1])
            else:
                return example, broken[0] if broken else None
        first = broken[0]
        of_shards = all(sample.cause in _OF_THE_SHARD for sample in broken)
        advice = (
            "restore the shards, or name others"
            if of_shards
            else f"correct {source.key}.captions or the shards"
            if source.captions
            else "correct the shards, or name others"
        )
        raise DataError(
            f"{source.key}: {len(broken)} samples that could take one place are all broken, the first is "
            f"{first.shard}/{first.key}: {first.reason}; {advice}"
        )

    def _example(self, raw: RawSample, source: OrderedSource, *, seed: str) -> Example:
        record, rng = decode_record(raw), random.Random(seed)
        caption, labels = source.caption_of(record, rng=rng), source.labels_of(raw, record)
        image = sample_image(raw)
        pixels = self._augment(image, self._preprocess, rng=rng) if self._augment else self._preprocess(image)
        negatives = source.negatives_of(raw, caption, seed=seed)
        return Example(raw.name, pixels, caption, labels, negatives)

    def _warn(self, broken: BrokenSample) -> None:
        if self._warnings_left == 0 or broken.shard in self._named_shards:
            return
        if broken.cause in _OF_THE_SHARD:
            self._named_shards.add(broken.shard)
        self._warnings_left -= 1
        logger.warning(
            "another sample takes the place of %s/%s: %s%s",
            broken.shard,
            broken.key,
            broken.reason,
            "; further ones are counted, not named" if self._warnings_left == 0 else "",
        )


def _padded(labels: Sequence[tuple[int, ...]], width: int) -> Int64[Tensor, "b m"]:
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in labels])


def _fingerprint(caption: str) -> int:
    """64 bits of a caption, the same in every process: `hash` is salted."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big", signed=True)
