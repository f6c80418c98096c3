"""What became of the texts that makers made, by shard, kept as the work goes on."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.curation.negatives.filters import KEPT, NOTHING, Counts
from vlm.files import writing

RECORD = "shards.jsonl"


@dataclass(kw_only=True)
class ShardCounts:
    """Of one shard or several."""

    samples: int = 0
    without_caption: int = 0
    """Broken ones too."""
    captions: int = 0
    outcomes: Counts = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Negatives that were written."""
        return sum(count for (_, outcome), count in self.outcomes.items() if outcome == KEPT)

    @property
    def made(self) -> int:
        """Texts that rules made, kept or not."""
        return sum(count for (_, outcome), count in self.outcomes.items() if outcome != NOTHING)

    def of_rule(self, rule: str) -> Counter[str]:
        """What became of the texts of a rule."""
        return Counter({outcome: n for (other, outcome), n in self.outcomes.items() if other == rule})

    @property
    def rules(self) -> list[str]:
        """Those that were asked."""
        return sorted({rule for rule, _ in self.outcomes})

    def add_sample(self, captions: Sequence[str], outcomes: Counts) -> None:
        """Count a sample."""
        self.samples += 1
        self.without_caption += not captions
        self.captions += len(captions)
        self.outcomes.update(outcomes)

    def update(self, other: "ShardCounts") -> None:
        """Add the counts of other shards."""
        self.samples += other.samples
        self.without_caption += other.without_caption
        self.captions += other.captions
        self.outcomes.update(other.outcomes)

    def to_mapping(self) -> dict[str, Any]:
        """As data that json can hold."""
        rules = {rule: dict(sorted(self.of_rule(rule).items())) for rule in self.rules}
        return {
            "samples": self.samples,
            "without_caption": self.without_caption,
            "captions": self.captions,
            "rules": rules,
        }

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> "ShardCounts":
        """The reverse."""
        outcomes = Counter(
            {(rule, outcome): n for rule, found in values["rules"].items() for outcome, n in found.items()}
        )
        return cls(
            samples=values["samples"],
            without_caption=values["without_caption"],
            captions=values["captions"],
            outcomes=outcomes,
        )


class Record:
    """A line for each shard that is done, in the folder of the report.

    Args:
        made_by: lines of other makings are of no use.
    """

    def __init__(self, folder: Path, *, made_by: str) -> None:
        self._path = folder / RECORD
        self._made_by = made_by
        self._known = dict(_read(self._path, made_by))

    @property
    def known(self) -> frozenset[str]:
        """The sidecars of which there is a line."""
        return frozenset(self._known)

    def add(self, sidecar: str, counts: ShardCounts) -> None:
        """Append a line."""
        self._known[sidecar] = counts
        line = {"made_by": self._made_by, "sidecar": sidecar, **counts.to_mapping()}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(line)}\n")  # what was killed in the middle of a line stays alone on it

    def total(self, sidecars: Iterable[str]) -> ShardCounts:
        """Of these shards together."""
        total = ShardCounts()
        for sidecar in sidecars:
            total.update(self._known[sidecar])
        return total


def _read(path: Path, made_by: str) -> Iterable[tuple[str, ShardCounts]]:
    if not path.is_file():
        return
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            if values["made_by"] == made_by:
                yield values["sidecar"], ShardCounts.from_mapping(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut off; its shard is made again
