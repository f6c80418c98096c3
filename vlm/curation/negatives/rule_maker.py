"""`maker=rules`: one pass over captions collects their words, then the rules rewrite each."""

import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from tqdm import tqdm

from vlm.curation.negatives.captions import read_captions
from vlm.curation.negatives.chinese import Chinese
from vlm.curation.negatives.english import English
from vlm.curation.negatives.filters import Candidate
from vlm.curation.negatives.lexicon import PARTS, Lexicon, Part, Tally, tally_sample
from vlm.curation.negatives.maker import Corpus, Maker, ReadyMaker, caption_rng
from vlm.curation.negatives.phrases import Grammar, Parsed
from vlm.curation.negatives.rules import RULES, Scene
from vlm.curation.negatives.word_lists import Language
from vlm.data.tools.processes import Advance, run_tasks
from vlm.errors import ConfigError

_FORMAT = 1
"""Raised when the rules make other negatives of the same captions."""
_ROUNDS = 2
"""A rule that found a caption's first negatives may be asked for another."""
_PER_SHARD = 2000
"""Samples of a shard from which words are collected, at most."""
_ADVANCE_EVERY = 64

Tallies = dict[Language, dict[Part, Tally]]


@dataclass(frozen=True, kw_only=True)
class Rules(Maker):
    """Makes negatives by rules, with words of the corpus itself.

    Args:
        rules: names of `RULES`.
        lexicon_samples: samples from which words are collected, at most; of shards that lie evenly.

    Raises:
        ConfigError: there is no such rule, or a number is out of range.
    """

    rules: Sequence[str]
    lexicon_samples: int

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown or not self.rules:
            raise ConfigError(f"maker.rules={list(self.rules)} has to name some of {', '.join(RULES)}")
        if self.lexicon_samples < 1:
            raise ConfigError(f"maker.lexicon_samples={self.lexicon_samples} must be at least 1")

    @property
    def name(self) -> str:
        """As it is written into sidecars."""
        return "rules"

    def ready(self, corpus: Corpus) -> "ReadyRules":
        """Collect the words of the corpus.

        Raises:
            ConfigError: a tagger is not installed.
        """
        lexicons = collect(corpus, self.lexicon_samples)
        return ReadyRules(rules=tuple(dict.fromkeys(self.rules)), corpus=corpus, lexicons=lexicons)


@dataclass(frozen=True, kw_only=True)
class ReadyRules(ReadyMaker):
    """The rules and the words of a corpus."""

    rules: tuple[str, ...]
    corpus: Corpus
    lexicons: dict[Language, Lexicon]

    @property
    def identity(self) -> dict[str, Any]:
        """What its negatives depend on."""
        return {
            "format": _FORMAT,
            "rules": self.rules,
            "language": self.corpus.language,
            "lexicons": {language: lexicon.digest for language, lexicon in sorted(self.lexicons.items())},
            "taggers": {language: tagger_version(language) for language in sorted(self.lexicons)},
        }

    @property
    def threads(self) -> None:
        """Processes, as Python's own work does not go faster in threads."""

    def candidates(self, captions: Sequence[str], *, seed: int) -> Sequence[Iterator[Candidate]]:
        """Each rule once, in an order that the caption draws, then once more."""
        parsed = [_parse(self.corpus, caption) for caption in captions]
        true_words = frozenset[str]().union(*(caption.words for caption in parsed))
        return [self._of(caption, true_words, seed) for caption in parsed]

    def _of(self, parsed: Parsed, true_words: frozenset[str], seed: int) -> Iterator[Candidate]:
        scene = Scene(parsed, true_words, self._lexicon(parsed.language), grammar(parsed.language))
        rng = caption_rng(seed, parsed.caption)
        rules = list(rng.sample(self.rules, len(self.rules)))
        for _ in range(_ROUNDS):
            for rule in tuple(rules):
                text = RULES[rule](scene, rng)
                if text is None:
                    rules.remove(rule)
                yield Candidate(rule, text or "")

    def _lexicon(self, language: Language) -> Lexicon:
        return self.lexicons.get(language) or Lexicon.of([])


@functools.cache
def grammar(language: Language) -> Grammar:
    """The parser of a language; loading one takes a second.

    Raises:
        ConfigError: its tagger is not installed.
    """
    return English() if language == "en" else Chinese()


def tagger_version(language: Language) -> str:
    """The package that finds the words of a language."""
    package = {"en": "HanTa", "zh": "jieba"}[language]
    return f"{package} {importlib.metadata.version(package)}"


def collect(corpus: Corpus, num_samples: int) -> dict[Language, Lexicon]:
    """The words of each language, from samples of shards that lie evenly among all.

    Raises:
        ConfigError: a tagger is not installed.
    """
    tasks = list(_parts(corpus.shards.sizes, num_samples))
    workers = min(corpus.workers, len(tasks))
    total = sum(count for _, count in tasks)
    with tqdm(
        desc="collecting words", total=total, unit="sample", leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        found = list(
            run_tasks(functools.partial(_tally_shard, corpus), tasks, num_workers=workers, advance=advance)
        )
    languages = sorted({language for tallies in found for language in tallies})
    return {
        language: Lexicon.of(tallies[language] for tallies in found if language in tallies)
        for language in languages
    }


def _parts(sizes: Sequence[int], num_samples: int) -> Iterator[tuple[int, int]]:
    """Shards and how many of their first samples are read."""
    filled = [shard for shard, size in enumerate(sizes) if size]
    wanted = min(len(filled), max(1, -(-num_samples // _PER_SHARD)))
    chosen = [filled[number * len(filled) // wanted] for number in range(wanted)]
    if sum(sizes[shard] for shard in chosen) < num_samples:
        chosen = filled
    left = num_samples
    for number, shard in enumerate(chosen):
        count = min(sizes[shard], -(-left // (len(chosen) - number)))
        left -= count
        if count:
            yield shard, count


def _tally_shard(corpus: Corpus, part: tuple[int, int], advance: Advance) -> Tallies:
    shard, count = part
    tallies: Tallies = {}
    samples = islice(read_captions(corpus.shards, shard, corpus.fields), count)
    for number, (_, captions) in enumerate(samples, start=1):
        parsed = sorted((_parse(corpus, caption) for caption in captions), key=lambda p: p.language)
        for language, group in groupby(parsed, key=lambda p: p.language):
            tally = tallies.setdefault(language, {part: Tally() for part in PARTS})
            tally_sample(tally, list(group))
        if number % _ADVANCE_EVERY == 0:
            advance(_ADVANCE_EVERY)
    advance(count % _ADVANCE_EVERY)
    return tallies


def _parse(corpus: Corpus, caption: str) -> Parsed:
    return grammar(corpus.language_of(caption)).parse(caption)
