"""Chinese noun phrases, by the words and tags of jieba, whose dictionary is in its package."""

import functools
import logging
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from vlm.curation.negatives.phrases import Edit, Grammar, Parsed, Phrase, Span, apply
from vlm.curation.negatives.word_lists import word_lists
from vlm.errors import ConfigError

_NOUNS = frozenset({"n", "nr", "nz", "ns", "nt", "ng"})
_ADJECTIVES = frozenset({"a", "b", "z", "an"})
_OF = "的"
_PLACE = "f"
_NUMBER = re.compile(r"[一二两三四五六七八九十百千万几数半多每某这那各另0-9０-９]+")


class Token(NamedTuple):
    """A word of a caption."""

    start: int
    end: int
    word: str
    tag: str

    @property
    def is_noun(self) -> bool:
        return self.tag in _NOUNS

    @property
    def is_adjective(self) -> bool:
        return self.tag in _ADJECTIVES


class Chinese(Grammar):
    """Parses Chinese.

    Raises:
        ConfigError: jieba is not installed.
    """

    def __init__(self) -> None:
        self._tagger = _load_tagger()
        self._lists = word_lists("zh")

    def parse(self, caption: str) -> Parsed:
        """Find the noun phrases."""
        tokens = self._tokens(caption)
        phrases: list[Phrase] = []
        places: list[tuple[int, int]] = []
        pending: Token | None = None  # the number in `一个穿着蓝色衣服的男人`, until its noun comes
        place = 0
        while place < len(tokens):
            start, place, counted = place, *_past_modifiers(tokens, place)
            nouns = place
            while place < len(tokens) and tokens[place].is_noun:
                place += 1
            if place == nouns:
                pending = counted or pending
                place = max(place, start + 1)
                continue
            follows = start > 0 and tokens[start - 1].word == _OF
            count, pending = (pending, None) if follows else (counted, pending)
            phrase = self._made(tokens, start, nouns, place, count, whole=not follows)
            if phrase is not None:
                phrases.append(phrase)
                places.append((start, place))
        return Parsed(
            caption=caption,
            language="zh",
            phrases=tuple(phrases),
            words=frozenset(token.word for token in tokens if token.is_noun or token.is_adjective),
            ties=tuple(self._tied(tokens, first, second) for first, second in pairwise(places)),
        )

    def rewrite(self, parsed: Parsed, edits: Sequence[Edit]) -> str:
        """The caption after edits."""
        return apply(parsed.caption, edits)

    def are_alike(self, first: str, second: str) -> bool:
        """Whether both may be true of one thing, as far as the lists say, or one is a part of the other."""
        return self.resembles(second, frozenset({first}), self._lists.with_alike((first,)))

    def resembles(self, word: str, true_words: frozenset[str], alike: frozenset[str]) -> bool:
        """Whether a word may be true where others are; the last characters say what a thing is."""
        if any(word[start:] in alike for start in range(max(1, len(word) - 1))):
            return True
        return any(word in true or true in word for true in true_words)

    def _tokens(self, caption: str) -> list[Token]:
        tokens: list[Token] = []
        end = 0
        for word, tag in self._tagger.cut(caption):
            start, end = end, end + len(word)
            tokens += _split_number(Token(start, end, word, tag))
        return [
            token._replace(tag="a") if after and self._describes(token, after) else token
            for token, after in zip(tokens, [*tokens, None][1:], strict=True)
        ]

    def _describes(self, token: Token, after: Token) -> bool:
        """Whether a noun is used as an adjective: to the dictionary every colour is a noun."""
        is_colour = len(token.word) > 1 and token.word.endswith("色")
        if not token.is_noun or not (is_colour or token.word in self._lists.contrast):
            return False
        return after.is_noun or after.is_adjective or after.word == _OF

    def _made(
        self, tokens: Sequence[Token], start: int, nouns: int, end: int, count: Token | None, *, whole: bool
    ) -> Phrase | None:
        head, after = tokens[end - 1], tokens[end].word if end < len(tokens) else ""
        text = "".join(token.word for token in tokens[nouns:end])
        before = tokens[start - 1].word if start else ""
        if {text, head.word} & self._lists.never or before in self._lists.negation:
            return None
        adjectives = tuple(
            Span(token.start, token.end, token.word)
            for token in tokens[start:nouns]
            if token.is_adjective and token.word not in self._lists.never
        )
        return Phrase(
            start=tokens[start].start,
            noun=Span(tokens[nouns].start, head.end, text),
            form="" if count is None else _NUMBER.sub("", count.word),
            adjectives=adjectives,
            count=None if count is None else Span(count.start, count.end, count.word),
            left=before,
            right=after,
            marked=start < nouns or not whole or (end < len(tokens) and tokens[end].tag == _PLACE),
            sure=all(token.tag == "n" for token in tokens[nouns:end]),
            exchangeable=whole,
        )

    def _tied(self, tokens: Sequence[Token], first: tuple[int, int], second: tuple[int, int]) -> bool:
        behind = tokens[second[1]] if second[1] < len(tokens) else None
        between = {token.word for token in tokens[first[1] : second[0]]}
        if between <= self._lists.symmetric or (behind and behind.word in self._lists.beside):
            return True
        if behind and behind.tag == _PLACE:
            return False
        return between <= self._lists.symmetric | self._lists.beside | self._lists.posture


@functools.cache
def _load_tagger() -> Any:
    try:
        import jieba
        from jieba import posseg
    except ImportError as error:
        raise ConfigError(
            "maker=rules finds Chinese words by jieba, which is not installed; pip install -e '.[negatives]'"
        ) from error
    jieba.setLogLevel(logging.WARNING)
    return posseg


def _past_modifiers(tokens: Sequence[Token], place: int) -> tuple[int, Token | None]:
    """Where a noun may begin, behind a number and adjectives, and the number."""
    count = None
    while place < len(tokens) and tokens[place].tag in ("m", "q"):
        token = tokens[place]
        count = token if count is None else Token(count.start, token.end, count.word + token.word, "m")
        place += 1
    while place < len(tokens) and tokens[place].is_adjective:
        place += 1
        if place < len(tokens) and tokens[place].word == _OF:
            place += 1
    return place, count


def _split_number(token: Token) -> list[Token]:
    """jieba takes `一面镜子` for one word, a number."""
    if token.tag != "m":
        return [token]
    number = _NUMBER.match(token.word)
    end = (number.end() if number else 0) + 1
    if number is None or len(token.word) <= end:
        return [token]
    cut = token.start + end
    return [
        Token(token.start, cut, token.word[:end], "m"),
        Token(cut, token.end, token.word[end:], "n"),
    ]
