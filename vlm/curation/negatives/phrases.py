"""The noun phrases of a caption: what the rules exchange and replace."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlm.curation.negatives.word_lists import Language

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


class Span(NamedTuple):
    """A part of a caption, and its words as they are compared."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """A noun with what stands before it.

    Args:
        start: of the whole phrase; it ends with the noun.
        noun: one word, or the words of a compound.
        form: what another noun has to fit: number and article in English, the measure word in Chinese.
        count: article or number, in Chinese with the measure word.
        left: the word before the phrase, "" at the start.
        right: the word behind it.
        marked: whether something beside it tells that it is a noun: an article, a number, an adjective.
        sure: whether the tagger alone is enough to take the word for one.
    """

    start: int
    noun: Span
    form: str
    adjectives: tuple[Span, ...]
    count: Span | None
    left: str
    right: str
    marked: bool
    sure: bool = True
    exchangeable: bool = True
    """As a whole."""

    @property
    def end(self) -> int:
        return self.noun.end


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """A caption and its noun phrases.

    Args:
        words: all of its words as they are compared, in their basic form too.
        ties: for each phrase but the first, whether the caption says the same if it changes places with the
            one before it, as in `a cat and a dog`.
    """

    caption: str
    language: Language
    phrases: tuple[Phrase, ...]
    words: frozenset[str]
    ties: tuple[bool, ...]

    def symmetric(self, first: int, second: int) -> bool:
        """Whether the caption says the same if these phrases change places."""
        return all(self.ties[min(first, second) : max(first, second)])


class Edit(NamedTuple):
    """What takes the place of a part of a caption."""

    start: int
    end: int
    text: str


class Grammar(ABC):
    """A language: its parser, and what a change of words asks of those beside them."""

    @abstractmethod
    def parse(self, caption: str) -> Parsed:
        """Find the noun phrases."""

    @abstractmethod
    def rewrite(self, parsed: Parsed, edits: Sequence[Edit]) -> str:
        """The caption after edits that do not overlap."""

    @abstractmethod
    def are_alike(self, first: str, second: str) -> bool:
        """Whether two nouns or adjectives may be true of one thing."""

    @abstractmethod
    def resembles(self, word: str, true_words: frozenset[str], alike: frozenset[str]) -> bool:
        """Whether a word may be true where others are.

        Args:
            alike: these others, and what the lists say is alike.
        """


def script_of(caption: str) -> Language:
    """Chinese where a third of the letters are."""
    letters = sum(map(str.isalpha, caption))
    return "zh" if len(_CJK.findall(caption)) * 3 > letters else "en"


def apply(caption: str, edits: Sequence[Edit]) -> str:
    """The caption with parts replaced."""
    parts, end = [], 0
    for edit in sorted(edits):
        parts += [caption[end : edit.start], edit.text]
        end = edit.end
    return "".join([*parts, caption[end:]])
