"""Samples that cannot be used. Imports nothing heavy: tools that pack and index shards need it."""

from enum import StrEnum
from typing import NamedTuple


class Cause(StrEnum):
    """Why a sample cannot be used; logged as `data/broken/<cause>`."""

    NO_IMAGE = "no_image"
    UNREADABLE_IMAGE = "unreadable_image"
    OVERSIZED_IMAGE = "oversized_image"
    NO_CAPTION = "no_caption"
    EMPTY_CAPTION = "empty_caption"
    UNREADABLE_TEXT = "unreadable_text"
    DAMAGED_SHARD = "damaged_shard"
    MISSING_SHARD = "missing_shard"


class BrokenSample(NamedTuple):
    """A sample that cannot be used, and why."""

    cause: Cause
    shard: str
    key: str
    reason: str
