"""English noun phrases, by the tags of HanTa, whose model is in its package."""

import functools
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from vlm.curation.negatives.phrases import Edit, Grammar, Parsed, Phrase, Span, apply
from vlm.curation.negatives.word_lists import word_lists
from vlm.errors import ConfigError

_TOKEN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*|['’][^\W\d_]+|\d+(?:[.,]\d+)*|[^\w\s]|\w+")
_NOUNS = frozenset({"NN0", "NN1", "NN2"})
_ARTICLES = frozenset({"AT0", "DT0", "DPS", "CRD"})
_ONE = frozenset({"a", "an", "another", "each", "every", "one", "this", "that"})
_MANY = frozenset({"these", "those", "both", "many", "several", "few", "all"})
_A_THOUGH_VOWEL = re.compile(r"(?:uni|use|usu|eu|one\b|once|ufo|utensil)", re.IGNORECASE)
_AN_THOUGH_CONSONANT = re.compile(r"(?:hour|honest|heir|x-ray|mri\b|suv\b)", re.IGNORECASE)
_ARTICLE_BEFORE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
# A quantity as in `a group of people` is one phrase with what it is of; `the front of a car` is a place.
_REMEMBERED = 1 << 16
_QUANTIFYING = frozenset({"a", "an", "some", "two", "three", "four", "several", "another"})


class Token(NamedTuple):
    """A word of a caption."""

    start: int
    end: int
    text: str
    word: str
    """In lower case."""
    tag: str
    """Of the British National Corpus (C5)."""


class English(Grammar):
    """Parses English, and keeps articles and capitals right.

    Raises:
        ConfigError: HanTa is not installed.
    """

    def __init__(self) -> None:
        self._tagger = _load_tagger()
        self._lists = word_lists("en")
        self.words_of = functools.lru_cache(_REMEMBERED)(self._words_of)

    def parse(self, caption: str) -> Parsed:
        """Find the noun phrases."""
        tokens = self._tokens(caption)
        phrases: list[Phrase] = []
        places: list[tuple[int, int]] = []
        end = 0
        while end < len(tokens):
            found = self._phrase(tokens, end, phrases[-1] if phrases else None)
            if found is None:
                end += 1
                continue
            end, phrase, place = found
            if phrase is not None:
                phrases.append(phrase)
                places.append(place)
        words = frozenset(token.word for token in tokens)
        ties = tuple(self._tied(tokens, first, second) for first, second in pairwise(places))
        return Parsed(
            caption=caption,
            language="en",
            phrases=tuple(phrases),
            words=words.union(*map(self.words_of, words)),
            ties=ties,
        )

    def rewrite(self, parsed: Parsed, edits: Sequence[Edit]) -> str:
        """The caption after edits, with `a` and `an` and the first letter as they should be."""
        caption = parsed.caption
        opening = len(caption) - len(caption.lstrip("\"'“‘ "))
        cased = [Edit(edit.start, edit.end, _cased(caption, edit, opening)) for edit in edits]
        articles = [article for edit in cased if (article := _article(caption, edit))]
        return apply(caption, [*cased, *articles])

    def _words_of(self, text: str) -> tuple[str, ...]:
        """The words of a noun, and the singular of those that end with s."""
        words = text.split()
        singular = [
            str(self._tagger.analyze(word, pos="NN2")[0]).lower() for word in words if word[-1] == "s"
        ]
        return (*words, *singular)

    def are_alike(self, first: str, second: str) -> bool:
        """Whether both may be true of one thing, as far as the lists say, or have a word in common."""
        mine = self._lists.with_alike(self.words_of(first))
        return any(word in mine for word in self.words_of(second))

    def resembles(self, word: str, true_words: frozenset[str], alike: frozenset[str]) -> bool:
        """Whether a word may be true where others are."""
        return any(part in alike for part in self.words_of(word))

    def _tokens(self, caption: str) -> list[Token]:
        matches = list(_TOKEN.finditer(caption))
        tags = self._tagger.tag_sent([match[0] for match in matches], taglevel=0)
        words = [match[0].lower() for match in matches]
        return [
            Token(match.start(), match.end(), match[0], word, self._tag(word, tag, after))
            for match, word, tag, after in zip(matches, words, tags, [*tags, ""][1:], strict=True)
        ]

    def _tag(self, word: str, tag: str, after: str) -> str:
        """A noun may be used as an adjective, as in `an orange cat`."""
        describes = tag == "NN1" and word in self._lists.contrast and after in (*_NOUNS, "AJ0")
        return "AJ0" if describes else tag

    def _phrase(
        self, tokens: Sequence[Token], start: int, before: Phrase | None
    ) -> tuple[int, Phrase | None, tuple[int, int]] | None:
        """The phrase that begins at a token: where it ends, what it is, its first and last token."""
        place = start
        while place < len(tokens) and tokens[place].tag in _ARTICLES:
            place += 1
        counted = place
        while place < len(tokens) and _is_modifier(tokens, place):
            place += 1
        nouns = place
        while place < len(tokens) and (
            tokens[place].tag in _NOUNS or (place > nouns and _is_name(tokens[place]))
        ):
            place += 1
        if place == nouns:
            return None
        return place, self._made(tokens, start, counted, nouns, place, before), (start, place)

    def _made(
        self, tokens: Sequence[Token], start: int, counted: int, nouns: int, end: int, before: Phrase | None
    ) -> Phrase | None:
        after = tokens[end].word if end < len(tokens) else ""
        head = tokens[end - 1]
        if head.word in self._lists.never or len(head.word) < 3 or _is_part(tokens, end):
            return None
        said_before = {token.word for token in tokens[max(start - 1, 0) : counted]}
        form = _form(head.tag, tokens[counted - 1] if counted > start else None)
        if form is None or said_before & self._lists.negation:
            return None
        while nouns > counted and tokens[nouns - 1].word in self._lists.bound:
            nouns -= 1
        first = _start_of_quantity(tokens, start)
        noun = Span(tokens[nouns].start, head.end, " ".join(token.word for token in tokens[nouns:end]))
        adjectives = tuple(
            Span(token.start, token.end, token.word)
            for token in tokens[counted:nouns]
            if token.tag == "AJ0" and token.word not in self._lists.never | self._lists.bound
        )
        return Phrase(
            start=tokens[first].start,
            noun=noun,
            form=form,
            adjectives=adjectives,
            count=None,
            left=_left(tokens, start),
            right=after,
            marked=start < nouns,
        )

    def _tied(self, tokens: Sequence[Token], first: tuple[int, int], second: tuple[int, int]) -> bool:
        between = [token.word for token in tokens[first[1] : second[0]]]
        return all(word in self._lists.symmetric | self._lists.posture for word in between)


@functools.cache
def _load_tagger() -> Any:
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        raise ConfigError(
            "maker=rules finds English words by HanTa, which is not installed; pip install -e '.[negatives]'"
        ) from error
    return HanoverTagger("morphmodel_en.pgz")


def _is_modifier(tokens: Sequence[Token], place: int) -> bool:
    """Adjectives, and what joins two of them."""
    token = tokens[place]
    if token.tag in ("AJ0", "ORD"):
        return True
    if token.tag == "AV0" and token.word.endswith("ly") and tokens[place - 1 : place] != []:
        return tokens[place - 1].tag in _ARTICLES and [t.tag for t in tokens[place + 1 : place + 2]] == [
            "AJ0"
        ]
    beside = (*tokens[max(place - 1, 0) : place], *tokens[place + 1 : place + 2])
    return token.word in ("and", ",", "&") and [other.tag for other in beside] == ["AJ0", "AJ0"]


def _is_part(tokens: Sequence[Token], end: int) -> bool:
    """Whether a noun belongs to what follows: `group of`, `man's`, `snow covered mountain`."""
    after = tokens[end : end + 2]
    if not after:
        return False
    if after[0].word == "of" or after[0].word[0] in "'’":
        return True
    return after[0].tag == "VVN" and len(after) > 1 and (after[1].tag in _NOUNS or after[1].tag == "AJ0")


def _is_name(token: Token) -> bool:
    return token.tag == "NP0"


def _start_of_quantity(tokens: Sequence[Token], start: int) -> int:
    """Where `a large group of` begins before a phrase."""
    if start < 2 or tokens[start - 1].word != "of":
        return start
    place = start - 2
    while place > 0 and (tokens[place].tag in _NOUNS or tokens[place].tag == "AJ0"):
        place -= 1
    return place if tokens[place].word in _QUANTIFYING else start


def _left(tokens: Sequence[Token], start: int) -> str:
    """The word before a phrase, two where the last is `of`."""
    first = start - 2 if start > 1 and tokens[start - 1].word == "of" else start - 1
    return " ".join(token.word for token in tokens[max(first, 0) : start])


def _form(tag: str, article: Token | None) -> str | None:
    """`many`, `one`, `the` for a singular with another article, `bare` for one without.

    None where article and noun contradict each other, as `two zebra`: the tagger is wrong about one.
    """
    word = article.word if article is not None else ""
    counts = article is not None and (article.tag == "CRD" or word in _MANY)
    if word in _ONE:
        return None if tag == "NN2" else "one"
    if tag in ("NN2", "NN0"):
        return "many"
    if counts:
        return None
    return "the" if word else "bare"


def _cased(caption: str, edit: Edit, opening: int) -> str:
    """A capital where the caption begins with one, and none where words come from its beginning."""
    old, new = caption[edit.start : edit.end], edit.text
    if caption.isupper():
        return new.upper()
    if not new or (new[:2].isalpha() and new[:2].isupper()):
        return new
    if edit.start <= opening and old[:1].isupper():
        return new[0].upper() + new[1:]
    if new[0].isupper() and caption[opening:].startswith(new) and edit.start > opening:
        return new[0].lower() + new[1:]
    return new


def _article(caption: str, edit: Edit) -> Edit | None:
    """`a` for `an` or the reverse before new words, where it is needed."""
    found = _ARTICLE_BEFORE.search(caption[: edit.start])
    if found is None:
        return None
    right = "an" if _takes_an(edit.text) else "a"
    if found[1].lower() == right:
        return None
    right = right.upper() if caption.isupper() else right
    return Edit(
        found.start(1), found.end(1), right[0].upper() + right[1:] if found[1][0].isupper() else right
    )


def _takes_an(text: str) -> bool:
    if _AN_THOUGH_CONSONANT.match(text):
        return True
    return text[:1].lower() in "aeiou" and not _A_THOUGH_VOWEL.match(text)
