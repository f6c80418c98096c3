"""What filters let through, beside a slow search."""

import random
import string
from collections import Counter

import pytest

from vlm.curation.negatives.filters import (
    DUPLICATE,
    IDENTICAL,
    KEPT,
    LENGTH,
    NOTHING,
    OF_SAMPLE,
    Candidate,
    Filters,
    normalised,
)
from vlm.errors import ConfigError


def chosen(caption, texts, *, captions=None, per_caption=10, length_ratio=2.0):
    counts = Counter()
    filters = Filters(per_caption=per_caption, length_ratio=length_ratio)
    made = filters.choose(caption, captions or [caption], [Candidate("rule", text) for text in texts], counts)
    return [negative.negative for negative in made], {outcome: n for (_, outcome), n in counts.items()}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("a red car", IDENTICAL),
        ("A red car.", IDENTICAL),
        ("a  red\tcar!", IDENTICAL),
        ("ａ ｒｅｄ ｃａｒ", IDENTICAL),
        ("The automobile is red", OF_SAMPLE),
        ("a red", KEPT),
        ("red", LENGTH),
        ("a very very long red car", LENGTH),
        ("...", LENGTH),
        ("", NOTHING),
        ("a blue car", KEPT),
    ],
)
def test_a_text_is_kept_or_dropped_for_one_cause(text, outcome):
    assert chosen("a red car", [text], captions=["a red car", "the automobile is red"])[1] == {outcome: 1}


def test_chinese_forms_are_compared_as_one():
    assert chosen("一辆红色的车", ["一辆红色的车。"])[1] == {IDENTICAL: 1}
    assert chosen("一只猫，在桌上", ["一只狗,在桌上", "一只狗，在桌上！"])[1] == {KEPT: 1, DUPLICATE: 1}


def test_no_more_are_asked_for_than_a_caption_gets():
    asked = []

    def candidates():
        for number in range(10):
            asked.append(number)
            yield Candidate("rule", f"text {number}")

    counts = Counter()
    made = Filters(per_caption=3, length_ratio=2.0).choose("text", ["text"], candidates(), counts)
    assert [negative.negative for negative in made] == ["text 0", "text 1", "text 2"]
    assert asked == [0, 1, 2]


def test_what_makers_count_is_counted_on():
    counts = Counter()
    Filters(per_caption=3, length_ratio=2.0).choose("text", ["text"], [Candidate("r", "", "refused")], counts)
    assert counts == {("r", "refused"): 1}


def slow(caption, texts, captions, *, per_caption, length_ratio):
    """Compares every text with every other."""

    def same(one, other):
        kept = string.ascii_lowercase + string.digits
        return "".join(c for c in one.lower() if c in kept) == "".join(c for c in other.lower() if c in kept)

    made = []
    for text in texts:
        if len(made) == per_caption or not any(c.isalnum() for c in text):
            continue
        if any(same(text, other) for other in [caption, *captions, *made]):
            continue
        ratio = len(text) / len(caption)
        if 1 / length_ratio <= ratio <= length_ratio:
            made.append(text.strip())
    return made


@pytest.mark.parametrize("seed", range(50))
def test_filters_are_those_of_a_slow_search(seed):
    rng = random.Random(seed)

    def text():
        return "".join(rng.choice("abAB.,!") for _ in range(rng.randint(1, 6)))

    captions = [f"{text()}a" for _ in range(3)]
    texts = [text() for _ in range(40)]
    options = {"per_caption": rng.randint(1, 8), "length_ratio": rng.choice([1.0, 1.5, 2.0])}
    without_commas = [other.replace(",", "").replace(".", "").replace("!", "") for other in texts]
    made = chosen(captions[0], [t for t in without_commas if t], captions=captions, **options)[0]
    assert made == slow(captions[0], [t for t in without_commas if t], captions, **options)


def test_normalised_leaves_letters_and_digits():
    assert normalised(" A  dog's BALL—２ ") == "adogsball2"
    assert normalised("一只猫 ，在 桌上！") == "一只猫在桌上"
    assert normalised("，。！") == ""


@pytest.mark.parametrize(
    ("key", "value"), [("per_caption", 0), ("length_ratio", 0.5), ("length_ratio", float("nan"))]
)
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        Filters(**{"per_caption": 1, "length_ratio": 2.0, key: value})
