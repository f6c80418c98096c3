"""The words of a corpus: how often they occur, what stands beside them, and which are alike in that."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from vlm.curation.negatives.phrases import Parsed

Part = Literal["noun", "adjective"]
PARTS: tuple[Part, ...] = ("noun", "adjective")

MIN_COUNT = 3
"""Rarer words replace none: they may be misspelt, or a mistake of the tagger."""
MOST_WORDS, MOST_CONTEXTS = 5000, 1000
NEIGHBOURS = 20
_CANDIDATES = 100
"""Neighbours that are looked at for those that fit."""
_FITS = 2
"""Occurrences of a word in a form that prove it: one may be a mistake of the tagger."""
_MARKED_SHARE = 0.05
_DOUBT = 10
"""Occurrences with which the contexts of a word count half: one that they have in common proves little."""


@dataclass(kw_only=True)
class Tally:
    """Counts of the nouns or the adjectives of captions."""

    counts: Counter[str] = field(default_factory=Counter)
    forms: Counter[tuple[str, str]] = field(default_factory=Counter)
    marked: Counter[str] = field(default_factory=Counter)
    """Where something beside the word tells that it is a noun."""
    contexts: Counter[tuple[str, str]] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples with both words, in the order of the alphabet."""
    samples: Counter[str] = field(default_factory=Counter)
    num_samples: int = 0

    def update(self, other: "Tally") -> None:
        """Add the counts of other captions."""
        for name in ("counts", "forms", "marked", "contexts", "together", "samples"):
            getattr(self, name).update(getattr(other, name))
        self.num_samples += other.num_samples


def tally_sample(tallies: dict[Part, Tally], captions: Sequence[Parsed]) -> None:
    """Count the words of a sample's captions of one language."""
    nouns = tallies["noun"]
    for parsed in captions:
        for phrase in parsed.phrases:
            noun = phrase.noun.text
            nouns.counts[noun] += 1
            nouns.forms[noun, phrase.form] += 1
            nouns.marked[noun] += phrase.marked
            nouns.contexts.update({(noun, f"{phrase.left} _"): 1, (noun, f"_ {phrase.right}"): 1})
            for adjective in phrase.adjectives:
                tallies["adjective"].counts[adjective.text] += 1
                tallies["adjective"].contexts[adjective.text, noun] += 1
    present = sorted({phrase.noun.text for parsed in captions for phrase in parsed.phrases})
    nouns.samples.update(present)
    nouns.together.update(combinations(present, 2))
    nouns.num_samples += 1


@dataclass(frozen=True)
class Vocabulary:
    """The words of one part of speech, in one language."""

    tally: Tally

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Those that may replace others, the most frequent first."""
        counts = self.tally.counts
        common = sorted((word for word in counts if counts[word] >= MIN_COUNT), key=lambda w: (-counts[w], w))
        return tuple(common[:MOST_WORDS])

    @cached_property
    def neighbours(self) -> dict[str, tuple[str, ...]]:
        """Of each word, those with the most similar contexts, the most similar first."""
        vectors = self._vectors()
        counts = np.array([self.tally.counts[word] for word in self.words])
        trust = counts / (counts + _DOUBT)
        found = {}
        for number, word in enumerate(self.words):
            # Rounded, so that sums in another order do not change the order.
            cosine = np.round(vectors @ vectors[number] * trust, 6)
            cosine[number] = -1
            best = np.argsort(-cosine, kind="stable")[:_CANDIDATES]
            found[word] = tuple(self.words[other] for other in best if cosine[other] > 0)
        return found

    def fits(self, word: str, form: str) -> bool:
        """Whether the corpus has the word in this form; `the` and no measure word fit what is not plural."""
        if form == "the":
            return any(self.tally.forms[word, other] for other in ("the", "one", "bare"))
        return form == "" or self.tally.forms[word, form] >= _FITS

    def is_noun(self, word: str, *, sure: bool) -> bool:
        """Whether the corpus treats it as one: what never has an article or adjective beside it is none."""
        count = self.tally.counts[word]
        return sure if count < MIN_COUNT else self.tally.marked[word] >= _MARKED_SHARE * count

    def go_together(self, first: str, second: str) -> bool:
        """Whether samples have both more often than by chance: one may be another name for the other."""
        pair = (first, second) if first < second else (second, first)
        both = self.tally.together[pair]
        expected = self.tally.samples[first] * self.tally.samples[second] / max(1, self.tally.num_samples)
        return both >= 2 and both > expected

    def _vectors(self) -> Float64[ndarray, "words contexts"]:
        """Unit rows of positive pointwise mutual information."""
        rows = {word: number for number, word in enumerate(self.words)}
        totals: Counter[str] = Counter()
        for (word, context), count in self.tally.contexts.items():
            totals[context] += count if word in rows else 0
        common = sorted((c for c in totals if totals[c] >= MIN_COUNT), key=lambda c: (-totals[c], c))
        columns = {context: number for number, context in enumerate(common[:MOST_CONTEXTS])}
        counts = np.zeros((len(rows), len(columns)))
        for (word, context), count in self.tally.contexts.items():
            if word in rows and context in columns:
                counts[rows[word], columns[context]] = count
        expected = np.outer(counts.sum(1), counts.sum(0)) / max(1.0, counts.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            information = np.where(counts > 0, np.maximum(np.log(counts / expected), 0), 0)
        norms: ndarray = np.maximum(np.linalg.norm(information, axis=1, keepdims=True), 1e-12)
        return np.asarray(information / norms)


@dataclass(frozen=True)
class Lexicon:
    """The nouns and adjectives of a language."""

    noun: Vocabulary
    adjective: Vocabulary

    @classmethod
    def of(cls, tallies: Iterable[dict[Part, Tally]]) -> "Lexicon":
        """From the counts of several processes, in any order."""
        total = {part: Tally() for part in PARTS}
        for tally in tallies:
            for part in PARTS:
                total[part].update(tally[part])
        return cls(noun=Vocabulary(total["noun"]), adjective=Vocabulary(total["adjective"]))

    @cached_property
    def digest(self) -> str:
        """Of all counts."""
        tallies = (self.noun.tally, self.adjective.tally)
        said = [
            sorted((str(key), count) for key, count in counter.items())
            for tally in tallies
            for counter in (tally.counts, tally.forms, tally.marked, tally.contexts, tally.together)
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()
