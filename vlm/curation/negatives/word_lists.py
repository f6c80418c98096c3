"""What is known of words beforehand: short lists of a language, `words_<language>.yaml`."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import yaml

Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True)
class WordLists:
    """The lists of a language; the files say what each is for."""

    never: frozenset[str]
    bound: frozenset[str]
    alike: dict[str, frozenset[str]]
    """Of a word, the others of its lines."""
    contrast: dict[str, tuple[str, ...]]
    """Of an adjective, those that are not true where it is."""
    symmetric: frozenset[str]
    posture: frozenset[str]
    beside: frozenset[str]
    negation: frozenset[str]

    def with_alike(self, words: Iterable[str]) -> frozenset[str]:
        """Words, and all that may be true of what one of them is true of."""
        own = frozenset(words)
        return own.union(*(self.alike[word] for word in own if word in self.alike))


@functools.cache
def word_lists(language: Language) -> WordLists:
    """Read the lists of a language."""
    text = files("vlm.curation.negatives").joinpath(f"words_{language}.yaml").read_text(encoding="utf-8")
    lists = yaml.safe_load(text)
    return WordLists(
        never=frozenset(lists["never"]),
        bound=frozenset(lists["bound"]),
        alike={word: frozenset(others) for word, others in _others(lists["alike"]).items()},
        contrast={
            word: tuple(other for other in others if other != word)
            for word, others in _others(lists["contrast"]).items()
        },
        symmetric=frozenset(lists["symmetric"]),
        posture=frozenset(lists["posture"]),
        beside=frozenset(lists["beside"]),
        negation=frozenset(lists["negation"]),
    )


def _others(lines: list[str]) -> dict[str, dict[str, None]]:
    """Of each word all words of its lines, in their order."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        words = line.split()
        for word in words:
            found.setdefault(word, {}).update(dict.fromkeys(words))
    return found
