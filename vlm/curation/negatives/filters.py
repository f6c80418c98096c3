"""What no maker may let through: texts that say the same as a caption, twice the same, or something else."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlm.data.negatives import Negative
from vlm.errors import ConfigError

KEPT = "kept"
IDENTICAL = "identical to its caption"
OF_SAMPLE = "another caption of the sample"
DUPLICATE = "duplicate"
LENGTH = "length"
NOTHING = "nothing to change"
"""The rule found no place in the caption where it applies."""
FILTERS = (IDENTICAL, OF_SAMPLE, DUPLICATE, LENGTH)

Counts = Counter[tuple[str, str]]
"""By rule and what became of its text."""


class Candidate(NamedTuple):
    """What a rule made of a caption; without a text, why."""

    rule: str
    text: str = ""
    cause: str = NOTHING


def normalised(text: str) -> str:
    """Letters and digits alone, in lower case and compatible forms."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Chooses among candidates.

    Args:
        per_caption: negatives at most.
        length_ratio: how many times longer or shorter than its caption a negative may be, in characters.

    Raises:
        ConfigError: a number is out of range.
    """

    per_caption: int
    length_ratio: float

    def __post_init__(self) -> None:
        if self.per_caption < 1:
            raise ConfigError(f"per_caption={self.per_caption} must be at least 1")
        if not self.length_ratio >= 1:
            raise ConfigError(f"length_ratio={self.length_ratio} must be at least 1")

    def choose(
        self, caption: str, captions: Sequence[str], candidates: Iterable[Candidate], counts: Counts
    ) -> list[Negative]:
        """The first candidates that pass; later ones are not asked for.

        Args:
            captions: of the sample, all of which are true of its image.
            counts: is added to.
        """
        own, true = normalised(caption), {normalised(other) for other in captions}
        kept: dict[str, Negative] = {}
        for rule, text, cause in candidates:
            found = self._outcome(caption, text, own, true, kept) if text else cause
            counts[rule, found] += 1
            if found == KEPT:
                kept[normalised(text)] = Negative(caption, text.strip(), rule)
                if len(kept) == self.per_caption:
                    break
        return list(kept.values())

    def _outcome(self, caption: str, text: str, own: str, true: set[str], kept: dict[str, Negative]) -> str:
        same = normalised(text)
        if same == own:
            return IDENTICAL
        if same in true:
            return OF_SAMPLE
        if same in kept:
            return DUPLICATE
        shorter, longer = sorted((len(caption.strip()), len(text.strip())))
        return KEPT if same and longer <= self.length_ratio * shorter else LENGTH
