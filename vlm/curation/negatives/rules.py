"""Five rules that make a caption wrong: parts of it change places, or a word gives way to another.

A rule refuses what may leave the caption true: phrases joined by `and` or `next to` that change places,
adjectives of one noun, words that are known to be alike, and new words that any caption of the sample has.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import combinations

from vlm.curation.negatives.lexicon import NEIGHBOURS, Lexicon
from vlm.curation.negatives.phrases import Edit, Grammar, Parsed, Phrase, Span
from vlm.curation.negatives.word_lists import WordLists, word_lists

_TRIES = 8

Rule = Callable[["Scene", random.Random], str | None]


class Scene:
    """A caption, the words that are true of its image, and the lexicon.

    Args:
        true_words: of all captions of the sample, this one too.
    """

    def __init__(
        self, parsed: Parsed, true_words: frozenset[str], lexicon: Lexicon, grammar: Grammar
    ) -> None:
        self.parsed = parsed
        self.true_words = true_words
        self.lexicon = lexicon
        self.grammar = grammar
        self.lists: WordLists = word_lists(parsed.language)
        self.phrases = parsed.phrases

    @property
    def nouns(self) -> list[int]:
        """The numbers of the phrases whose noun is one, as far as the corpus says."""
        is_noun = self.lexicon.noun.is_noun
        return [n for n, p in enumerate(self.phrases) if is_noun(p.noun.text, sure=p.sure)]

    def rewrite(self, edits: Sequence[Edit]) -> str:
        """The caption after edits."""
        return self.grammar.rewrite(self.parsed, edits)

    @cached_property
    def _alike(self) -> frozenset[str]:
        return self.lists.with_alike(self.true_words)

    def may_be_true(self, word: str) -> bool:
        """Whether a word resembles one that is true of the image."""
        return self.grammar.resembles(word, self.true_words, self._alike)


def shuffle(scene: Scene, rng: random.Random) -> str | None:
    """Whole noun phrases of one number in another order."""
    phrases = scene.phrases
    forms = [phrase.form == "many" for phrase in phrases]
    places = [n for n in scene.nouns if phrases[n].exchangeable]
    places = max(([n for n in places if forms[n] == many] for many in (False, True)), key=len)
    for _ in range(_TRIES if len(places) > 1 else 0):
        moved = places.copy()
        rng.shuffle(moved)
        pairs = [(old, new) for old, new in zip(places, moved, strict=True) if old != new]
        if all(scene.parsed.symmetric(*pair) or _are_same(scene, *pair) for pair in pairs):
            continue
        return scene.rewrite([_replaced(scene, _whole(phrases[a]), _whole(phrases[b])) for a, b in pairs])
    return None


def swap_nouns(scene: Scene, rng: random.Random) -> str | None:
    """Two nouns change places; articles and adjectives stay, Chinese measure words go along."""
    pairs = [pair for pair in combinations(scene.nouns, 2) if _may_swap(scene, *pair)]
    if not pairs:
        return None
    first, second = (scene.phrases[n] for n in rng.choice(pairs))
    edits = [_replaced(scene, first.noun, second.noun), _replaced(scene, second.noun, first.noun)]
    if first.count is not None and second.count is not None:
        edits += [_replaced(scene, first.count, second.count), _replaced(scene, second.count, first.count)]
    return scene.rewrite(edits)


def swap_adjectives(scene: Scene, rng: random.Random) -> str | None:
    """Adjectives of two different nouns change places: two of one kind if there are any."""
    pairs = [
        pair
        for first, second in combinations(scene.phrases, 2)
        if not scene.grammar.are_alike(first.noun.text, second.noun.text)
        for pair in _different_adjectives(scene, first, second)
    ]
    of_one_kind = [(a, b) for a, b in pairs if b.text in scene.lists.contrast.get(a.text, ())]
    if not pairs:
        return None
    first_word, second_word = rng.choice(of_one_kind or pairs)
    return scene.rewrite(
        [_replaced(scene, first_word, second_word), _replaced(scene, second_word, first_word)]
    )


def replace_nouns(scene: Scene, rng: random.Random) -> str | None:
    """One noun gives way to another that stands in similar places, and is not true of the image."""
    for number in rng.sample(scene.nouns, len(scene.nouns)):
        phrase = scene.phrases[number]
        choices = _other_nouns(scene, phrase)
        if choices:
            return scene.rewrite([Edit(phrase.noun.start, phrase.noun.end, rng.choice(choices))])
    return None


def replace_adjectives(scene: Scene, rng: random.Random) -> str | None:
    """One adjective gives way to one that contradicts it, or stands before similar nouns."""
    places = [(phrase, adjective) for phrase in scene.phrases for adjective in phrase.adjectives]
    for phrase, adjective in rng.sample(places, len(places)):
        choices = _other_adjectives(scene, phrase, adjective)
        if choices:
            return scene.rewrite([Edit(adjective.start, adjective.end, rng.choice(choices))])
    return None


RULES: Mapping[str, Rule] = {
    "shuffle": shuffle,
    "swap_nouns": swap_nouns,
    "swap_adjectives": swap_adjectives,
    "replace_nouns": replace_nouns,
    "replace_adjectives": replace_adjectives,
}


def _whole(phrase: Phrase) -> Span:
    return Span(phrase.start, phrase.end, "")


def _replaced(scene: Scene, old: Span, new: Span) -> Edit:
    return Edit(old.start, old.end, scene.parsed.caption[new.start : new.end])


def _are_same(scene: Scene, first: int, second: int) -> bool:
    a, b = scene.phrases[first], scene.phrases[second]
    return scene.grammar.are_alike(a.noun.text, b.noun.text)


def _may_swap(scene: Scene, first: int, second: int) -> bool:
    a, b = scene.phrases[first], scene.phrases[second]
    if scene.parsed.symmetric(first, second) or _are_same(scene, first, second):
        return False
    if a.count is not None and b.count is not None:
        return a.exchangeable and b.exchangeable
    return _fits(scene, a.noun.text, b) and _fits(scene, b.noun.text, a)


def _fits(scene: Scene, noun: str, phrase: Phrase) -> bool:
    """Whether a noun can stand where another does."""
    forms = {other.form for other in scene.phrases if other.noun.text == noun}
    return phrase.form in forms or scene.lexicon.noun.fits(noun, phrase.form)


def _different_adjectives(scene: Scene, first: Phrase, second: Phrase) -> list[tuple[Span, Span]]:
    """Of two nouns one adjective each; of unknown or other kinds only where they are the only ones."""
    mine, other = ({word.text for word in phrase.adjectives} for phrase in (first, second))
    alone = len(mine) == len(other) == 1
    return [
        (a, b)
        for a in first.adjectives
        for b in second.adjectives
        if a.text not in other and b.text not in mine and not scene.grammar.are_alike(a.text, b.text)
        if alone or b.text in scene.lists.contrast.get(a.text, ())
    ]


def _other_nouns(scene: Scene, phrase: Phrase) -> list[str]:
    nouns = scene.lexicon.noun
    old = phrase.noun.text
    known = max(old, old.split()[-1], key=lambda word: nouns.tally.counts[word])
    candidates = nouns.neighbours.get(known) or nouns.words
    lists = scene.lists
    found = (
        word
        for word in candidates
        if nouns.is_noun(word, sure=True)
        and nouns.fits(word, phrase.form)
        and not nouns.go_together(known, word)
        and word.split()[-1] not in lists.never
        and not scene.may_be_true(word)
    )
    return [word for word, _ in zip(found, range(NEIGHBOURS), strict=False)]


def _other_adjectives(scene: Scene, phrase: Phrase, adjective: Span) -> list[str]:
    lexicon = scene.lexicon.adjective
    contrast = scene.lists.contrast.get(adjective.text)
    if contrast is not None:  # a word of another kind, as `wooden` for `red`, may be true as well
        candidates = [word for word in contrast if lexicon.tally.counts[word]]
    else:
        candidates = [w for w in lexicon.neighbours.get(adjective.text, ()) if w not in scene.lists.contrast]
    own = [other.text for other in phrase.adjectives]
    return [
        word
        for word in candidates[:NEIGHBOURS]
        if word not in scene.true_words and not any(scene.grammar.are_alike(word, other) for other in own)
    ]
