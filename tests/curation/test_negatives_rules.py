"""What the rules make of captions, in both languages, with a lexicon of a few sentences."""

import random

import pytest

from vlm.curation.negatives.filters import normalised
from vlm.curation.negatives.lexicon import PARTS, Lexicon, Tally, tally_sample
from vlm.curation.negatives.phrases import script_of
from vlm.curation.negatives.rule_maker import grammar
from vlm.curation.negatives.rules import RULES, Scene
from vlm.curation.negatives.word_lists import word_lists

ENGLISH = [
    *(
        f"A {noun} sits on a {place}."
        for noun in ("man", "dog", "cat", "owl", "horse")
        for place in ("couch", "log")
    ),
    *(
        f"There is a {colour} {thing}."
        for colour in ("red", "blue", "green")
        for thing in ("car", "umbrella")
    ),
    *(f"Two {noun} are on a bed." for noun in ("dogs", "cats", "women")),
]
CHINESE = [
    *(f"一只{noun}坐在{place}上" for noun in ("狗", "猫", "熊") for place in ("沙发", "桌子")),
    *(
        f"一辆{colour}的{thing}停在路边"
        for colour in ("红色", "蓝色", "绿色")
        for thing in ("汽车", "自行车")
    ),
    *(f"一个{person}站在{place}前" for person in ("男人", "女人") for place in ("镜子", "大象")),
]
SEEDS = range(30)


def lexicon_of(captions, language):
    tally = {part: Tally() for part in PARTS}
    for caption in captions * 3:
        tally_sample(tally, [grammar(language).parse(caption)])
    return Lexicon.of([tally])


LEXICONS = {"en": lexicon_of(ENGLISH, "en"), "zh": lexicon_of(CHINESE, "zh")}


def texts(rule, caption, *, others=()):
    """What a rule makes of a caption with many seeds."""
    language = script_of(caption)
    parse = grammar(language).parse
    parsed = parse(caption)
    words = parsed.words.union(*(parse(other).words for other in others))
    scene = Scene(parsed, words, LEXICONS[language], grammar(language))
    return {RULES[rule](scene, random.Random(seed)) for seed in SEEDS}


@pytest.mark.parametrize(
    ("rule", "caption", "expected"),
    [
        ("shuffle", "A small dog chases the red ball.", {"The red ball chases a small dog."}),
        ("swap_nouns", "A small dog chases an old owl.", {"A small owl chases an old dog."}),
        ("swap_nouns", "An owl sits on a log.", {"A log sits on an owl."}),
        ("swap_adjectives", "An old man in a blue car", {None, "A blue man in an old car"}),
        ("swap_adjectives", "a red car behind a blue bus", {"a blue car behind a red bus"}),
        ("shuffle", "一只黑色的狗坐在红色的沙发上", {"红色的沙发坐在一只黑色的狗上"}),
        ("swap_nouns", "一个男人骑着一匹棕色的马", {"一匹马骑着一个棕色的男人"}),
        ("swap_adjectives", "黑色的狗坐在红色的沙发上", {"红色的狗坐在黑色的沙发上"}),
    ],
)
def test_words_change_places(rule, caption, expected):
    assert texts(rule, caption) <= expected
    assert texts(rule, caption) - {None}


@pytest.mark.parametrize(
    ("rule", "caption"),
    [
        ("swap_nouns", "a dog and a cat"),
        ("shuffle", "a dog and a cat"),
        ("swap_nouns", "a dog next to a cat"),
        ("swap_nouns", "a dog standing next to a cat"),
        ("swap_nouns", "一只狗旁边有一只猫"),
        ("swap_nouns", "two dog on a couch"),
        ("replace_nouns", "There are no dogs."),
        ("replace_nouns", "There are exactly 0 dogs."),
        ("replace_nouns", "没有狗"),
        ("shuffle", "a small dog near a cat, a horse and an owl"),
        ("swap_nouns", "a car behind a car"),
        ("swap_nouns", "a man behind a person"),
        ("swap_adjectives", "a big red car"),
        ("swap_adjectives", "a red car and a red bus"),
        ("swap_adjectives", "a large car behind a big bus"),
        ("swap_nouns", "一只狗和一只猫"),
        ("shuffle", "一只狗和一只猫"),
        ("swap_nouns", "一只狗在一辆汽车旁边"),
        ("swap_adjectives", "红色的狗坐在红色的沙发上"),
        ("replace_adjectives", "a dog on a couch"),
        ("shuffle", "running fast"),
        ("replace_nouns", "running fast"),
    ],
)
def test_what_would_say_the_same_is_not_made(rule, caption):
    assert texts(rule, caption) == {None}


def test_symmetric_phrases_still_change_places_with_others():
    made = texts("swap_nouns", "A dog and a cat sit on a couch.")
    assert made == {"A couch and a cat sit on a dog.", "A dog and a couch sit on a cat."}


def test_a_noun_gives_way_to_one_that_no_caption_has():
    made = texts(
        "replace_nouns", "A dog sits on a couch.", others=["A cat and a big owl", "a man beside a puppy"]
    )
    assert "A horse sits on a couch." in made
    for text in made:
        assert not {"dog", "cat", "owl", "man"} & set(text.lower().rstrip(".").split()) or "dog sits" in text


def test_articles_follow_new_words():
    made = texts("replace_nouns", "A dog sits on a log.")
    assert "An owl sits on a log." in made
    assert not any(text.startswith("A owl") for text in made)


def test_plurals_give_way_to_plurals():
    made = texts("replace_nouns", "Two dogs are on a bed.")
    assert {text for text in made if text.endswith("on a bed.")} <= {
        "Two cats are on a bed.",
        "Two women are on a bed.",
    }


def test_an_adjective_gives_way_to_one_that_contradicts_it():
    assert texts("replace_adjectives", "a red umbrella") == {"a blue umbrella", "a green umbrella"}
    assert texts("replace_adjectives", "一把红色的雨伞") == {"一把蓝色的雨伞", "一把绿色的雨伞"}


def test_an_adjective_of_another_caption_is_not_taken():
    assert texts("replace_adjectives", "a red umbrella", others=["a blue umbrella"]) == {"a green umbrella"}


def test_a_chinese_noun_gives_way_to_one_with_its_measure_word():
    made = texts("replace_nouns", "一只狗坐在沙发上")
    assert {"一只猫坐在沙发上", "一只熊坐在沙发上"} <= made
    assert not any("一只汽车" in text or "一只男人" in text for text in made)


def test_capital_captions_stay_capital():
    assert all(text.isupper() for text in texts("replace_nouns", "A DOG SITS ON A COUCH."))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("caption", ENGLISH + CHINESE)
def test_what_is_made_says_something_else(rule, caption):
    assert normalised(caption) not in {normalised(text) for text in texts(rule, caption) if text}


@pytest.mark.parametrize(
    "caption", ["", "   ", "!!!", "2024", "😀", "a", "的", "a" * 500, "\u200b", "A\tdog\nsits on a log"]
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_odd_captions_are_parsed(caption, language):
    parsed = grammar(language).parse(caption)
    for phrase in parsed.phrases:
        assert caption[phrase.noun.start : phrase.noun.end]
        assert phrase.start <= phrase.noun.start


def test_languages_are_told_by_script():
    assert script_of("a red car") == "en"
    assert script_of("一辆红色的汽车") == "zh"
    assert script_of("穿T恤的男人") == "zh"
    assert script_of("the word 茶 on a long wooden sign") == "en"
    assert script_of("12 !") == "en"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_words_alike_are_so_both_ways(language):
    alike = word_lists(language).alike
    assert all(word in alike[other] for word in alike for other in alike[word])


def test_words_that_go_together_in_samples_do_not_replace_each_other():
    tally = {part: Tally() for part in PARTS}
    parse = grammar("en").parse
    for other in ("A man sits on a log.", "A horse sits on a log.") * 5:
        tally_sample(tally, [parse(other)])
    for _ in range(4):
        tally_sample(tally, [parse("A clerk sits on a log."), parse("A cashier sits on a log.")])
    lexicon = Lexicon.of([tally])
    assert lexicon.noun.go_together("clerk", "cashier")
    assert not lexicon.noun.go_together("clerk", "horse")
    scene = Scene(parse("A clerk sits."), frozenset({"clerk"}), lexicon, grammar("en"))
    made = {RULES["replace_nouns"](scene, random.Random(seed)) for seed in SEEDS}
    assert "A horse sits." in made
    assert "A cashier sits." not in made


def test_counts_do_not_depend_on_how_captions_are_shared_out():
    parse = grammar("en").parse

    def tally(captions):
        counted = {part: Tally() for part in PARTS}
        for caption in captions:
            tally_sample(counted, [parse(caption)])
        return counted

    together = Lexicon.of([tally(ENGLISH * 3)])
    apart = Lexicon.of([tally(ENGLISH[7:] * 3), tally(ENGLISH[:7] * 3)])
    assert apart.digest == together.digest
    assert apart.noun.words == together.noun.words
    assert apart.noun.neighbours == together.noun.neighbours
