"""Which rows go into which shard: decided before anything is written, and kept beside the shards."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm.data.tools.tables import Place
from vlm.errors import DataError
from vlm.files import replacing

# What headers, caption and json of a sample take, roughly; the sizes of the images are known.
_TEXT_SIZE = 2_560
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Plan:
    """How many rows there are, and with which rows shards begin."""

    rows: int
    starts: tuple[tuple[int, int], ...]
    """Number of the first row of each shard, and its place in the table."""

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Number, place and count of the rows of each shard."""
        stops = [number for number, _ in self.starts[1:]] + [self.rows]
        for (number, place), stop in zip(self.starts, stops, strict=True):
            yield number, place, stop - number

    def write(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Write it with what it depends on."""
        with replacing(path) as draft:
            draft.write_text(json.dumps({**settings, "rows": self.rows, "starts": self.starts}), "utf-8")

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any], *, out: Path) -> "Plan":
        """Read the plan of an earlier run with these settings.

        Raises:
            DataError: it was made for another table, or with other settings.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
            plan = cls(content["rows"], tuple((number, place) for number, place in content["starts"]))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} is damaged; remove {out} and pack again") from None
        changed = [name for name, value in settings.items() if content.get(name) != value]
        if "content" in changed:
            raise DataError(
                f"out={out} holds shards of another input, or the input has changed since; name a new folder "
                "or remove this one"
            )
        if changed:
            differences = ", ".join(f"{n}={content.get(n)} (asked: {settings[n]})" for n in changed)
            raise DataError(f"out={out} was begun with {differences}; ask for the same, or name a new folder")
        return plan


class Planner:
    """Cuts rows into shards by number and size.

    Args:
        root: the folder of relative image paths.
        max_mb: size of a shard in 10^6 bytes, of which the share of the texts is estimated.
    """

    def __init__(self, *, root: Path, max_samples: int, max_mb: int) -> None:
        self._root = root
        self._max_samples = max_samples
        self._max_bytes = max_mb * _MEGABYTE
        self.missing: list[str] = []
        """Images for which there is no file."""
        self.total_size = 0
        """Bytes of all shards, estimated."""

    def plan(self, places: Iterable[Place]) -> Plan:
        """Look at every row once."""
        starts: list[tuple[int, int]] = []
        rows = samples = size = 0
        bar = tqdm(places, desc="planning", unit="row", delay=2, disable=None)
        for rows, (place, image) in enumerate(bar, 1):
            sample = _TEXT_SIZE + self._image_size(image)
            if not starts or samples == self._max_samples or size + sample > self._max_bytes:
                starts.append((rows - 1, place))
                samples = size = 0
            samples += 1
            size += sample
            self.total_size += sample
        return Plan(rows, tuple(starts))

    def _image_size(self, image: str | int | None) -> int:
        if isinstance(image, int):
            return image
        try:
            return os.stat(os.path.join(self._root, image)).st_size if image else 0
        except (OSError, ValueError):  # packing says what is wrong with it
            self.missing.append(str(image))
            return 0
