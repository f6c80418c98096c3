"""What is told of broken samples: numbers, a list, and when there are too many, the end of the run."""

import csv
import logging
from collections import Counter
from pathlib import Path

import torch

from vlm.broken import BrokenSample, Cause
from vlm.distributed import Topology, gather_objects, sum_over_ranks
from vlm.errors import DataError
from vlm.types import Batch

log = logging.getLogger(__name__)

FILE = "broken_samples.csv"
_COLUMNS = ["cause", "shard", "key", "step", "reason"]

# The list stops growing here, the counts do not.
_MOST_ROWS = 10_000
_MOST_OF_A_RANK = 1_000

# The share is taken of the last samples, of so many about; and not before there are so many.
_LAST_SAMPLES = 20_000
_FEWEST_SAMPLES = 1_000

_EXAMPLES = 3


class BrokenSamples:
    """Counts the samples of all ranks that others had to replace, by cause, and lists them in a file.

    Args:
        folder: the run's; the list is its `broken_samples.csv`, each sample once.
        max_share: a larger share among the last samples ends the run.
    """

    def __init__(self, folder: Path, *, max_share: int | float) -> None:
        self._list = _List(folder / FILE)
        self._max_share = max_share
        self._total = Counter[Cause]()
        self._new: list[tuple[int, BrokenSample]] = []
        self._new_samples = 0
        self._recent = Counter[Cause]()
        self._recent_samples = 0.0
        self._examples: list[BrokenSample] = []

    def add(self, batch: Batch, *, step: int) -> None:
        """Take note of this rank's rows of a batch."""
        self._new += [(step, broken) for broken in batch["broken"]]
        self._new_samples += len(batch["key"])

    def metrics(self, *, device: torch.device) -> dict[str, float]:
        """The totals so far, `data/substituted` and `data/broken/<cause>`; every rank has to call it."""
        counts = Counter(broken.cause for _, broken in self._new)
        local = [self._new_samples, *(counts[cause] for cause in Cause)]
        samples, *by_cause = sum_over_ranks(torch.tensor(local, device=device)).tolist()
        found = Counter({cause: count for cause, count in zip(Cause, by_cause, strict=True) if count})
        if found:
            every = [row for rows in gather_objects(self._new[:_MOST_OF_A_RANK]) for row in rows]
            self._examples += [broken for _, broken in every][: _EXAMPLES - len(self._examples)]
            if Topology.current().is_main:
                self._list.add(every)
        self._new, self._new_samples = [], 0
        self._total += found
        self._recent += found
        self._recent_samples += samples
        named = {f"data/broken/{cause}": float(count) for cause, count in sorted(self._total.items())}
        return {"data/substituted": float(self._total.total()), **named}

    def check(self) -> None:
        """Look whether too many of the last samples were broken; the same on every rank.

        Raises:
            DataError: they were.
        """
        broken, samples = self._recent.total(), self._recent_samples
        if samples >= _FEWEST_SAMPLES and broken > self._max_share * samples:
            causes = ", ".join(f"{cause} {count:.0f}" for cause, count in self._recent.most_common())
            examples = "; ".join(f"{b.shard}/{b.key}: {b.reason}" for b in self._examples)
            raise DataError(
                f"{broken:.0f} of the last {samples:.0f} samples are broken, more than "
                f"data.max_broken_share={self._max_share:g}: {causes}. The first: {examples}. "
                f"All are in {self._list.path}. Repair the shards or raise data.max_broken_share"
            ).on_all_ranks()
        if samples >= _LAST_SAMPLES:  # what is older counts half
            self._recent = Counter({cause: count // 2 for cause, count in self._recent.items()})
            self._recent_samples = samples / 2


class _List:
    """A csv file with a row for each broken sample; a run that goes on adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[tuple[str, str]] | None = None

    def add(self, rows: list[tuple[int, BrokenSample]]) -> None:
        try:
            if self._known is None:
                self._known = self._read()
            self._append(rows, self._known)
        except (OSError, csv.Error) as error:  # a list is not worth a run
            log.warning("%s cannot be written: %s", self.path, error)
            self._known = None  # read again, without the line that was cut

    def _append(self, rows: list[tuple[int, BrokenSample]], known: set[tuple[str, str]]) -> None:
        fresh = []
        for step, broken in rows:
            if len(known) < _MOST_ROWS and (broken.shard, broken.key) not in known:
                known.add((broken.shard, broken.key))
                fresh.append([broken.cause, broken.shard, broken.key, step, broken.reason])
        if not fresh:
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(_COLUMNS)
            writer.writerows(fresh)

    def _read(self) -> set[tuple[str, str]]:
        """What the list holds; the last line goes if it was cut off."""
        if not self.path.exists():
            return set()
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        rows = csv.DictReader(whole.decode("utf-8", "replace").splitlines(keepends=True))
        return {(row.get("shard") or "", row.get("key") or "") for row in rows}
