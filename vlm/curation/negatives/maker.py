"""What makes negatives: chosen by `maker=`, made ready for a corpus, then asked for each sample."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.curation.negatives.filters import Candidate
from vlm.curation.negatives.phrases import script_of
from vlm.curation.negatives.word_lists import Language
from vlm.data import ShardSet

LanguageOption = Literal["en", "zh", "auto"]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What negatives are made for.

    Args:
        fields: of the captions.
        language: of all captions; `auto` tells each by its script.
        workers: processes that may be used.
        folder: for what is to be found again when the command is typed again.
    """

    shards: ShardSet
    fields: tuple[str, ...]
    language: LanguageOption
    workers: int
    folder: Path

    def language_of(self, caption: str) -> Language:
        """The language of a caption."""
        return script_of(caption) if self.language == "auto" else self.language


class ReadyMaker(ABC):
    """A maker that knows the corpus; picklable."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What its negatives depend on, beside the captions and the seed."""

    @property
    @abstractmethod
    def threads(self) -> int | None:
        """How many samples may be asked for at once in one process; None: one each in several processes."""

    @abstractmethod
    def candidates(self, captions: Sequence[str], *, seed: int) -> Sequence[Iterable[Candidate]]:
        """What may become a negative of each caption of a sample; made as it is asked for."""


class Maker(ABC):
    """The value of `maker=`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As it is written into sidecars."""

    @abstractmethod
    def ready(self, corpus: Corpus) -> ReadyMaker:
        """Get to know the corpus.

        Raises:
            ConfigError: what it needs is not installed or not set.
        """


def caption_rng(seed: int, caption: str) -> random.Random:
    """The same for a caption wherever it stands and whoever asks."""
    return random.Random(f"{seed} {caption}")
