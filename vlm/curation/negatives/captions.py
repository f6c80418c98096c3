"""The captions of shards, one sample after another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from vlm.data import ShardSet
from vlm.data.samples import BrokenSampleError, decode_record, members_of, record_captions
from vlm.data.shards import BrokenShardError, ShardCursor


class Captioned(NamedTuple):
    """A sample's key, "" where its shard is damaged there, and its captions; none where it is broken."""

    key: str
    captions: list[str]


def read_captions(shards: ShardSet, shard: int, fields: Sequence[str]) -> Iterator[Captioned]:
    """Every sample of a shard in its order; a caption that comes twice comes once.

    Raises:
        DataError: the shard cannot be read just now.
    """
    with closing(ShardCursor(shards, members_of(fields))) as cursor:
        for row in range(shards.sizes[shard]):
            try:
                raw = cursor.read(shard, row)
            except BrokenShardError:
                yield Captioned("", [])
                continue
            try:
                captions = captions_of(decode_record(raw), fields)
            except BrokenSampleError:
                captions = []
            yield Captioned(raw.key, captions)


def captions_of(record: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """The captions of a sample, of all fields; one that comes twice comes once."""
    return list(dict.fromkeys(caption for group in record_captions(record, fields) for caption in group))
