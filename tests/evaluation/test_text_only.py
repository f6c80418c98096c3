import random

import pytest

from vlm.evaluation import text_only
from vlm.evaluation.case_fields import Case
from vlm.evaluation.text_only import text_only_contests

NOUNS = ["cat", "dog", "car", "tree", "house", "boat", "cup", "hat"]


def mean_credit(cases: list[Case]) -> float:
    contests = text_only_contests(cases)
    credits = [contest.credit for contest in contests if contest is not None]
    assert len(credits) == len(cases)
    return sum(credits) / len(credits)


def cases_of(make, *, count: int = 200) -> list[Case]:  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    return [
        Case(image=f"{row}.jpg", true=(true,), false=(false,), category="c")
        for row, (true, false) in enumerate(make(*rng.sample(NOUNS, 2)) for _ in range(count))
    ]


def test_a_word_that_only_false_captions_have_gives_them_away() -> None:
    assert mean_credit(cases_of(lambda a, b: (f"a {a} and a {b}", f"a {a} without a {b}"))) == 1


def test_longer_false_captions_give_themselves_away() -> None:
    """No word occurs in two cases."""
    cases = [
        Case(image=f"{row}.jpg", true=(f"p{row} q{row}",), false=(f"p{row} r{row} q{row}",), category="c")
        for row in range(100)
    ]
    assert mean_credit(cases) == 1


def test_the_order_of_words_is_read() -> None:
    assert mean_credit(cases_of(lambda a, b: (f"the {a} on it", f"{a} the on it"))) == 1


def test_nouns_swapped_at_random_say_nothing() -> None:
    assert 0.35 < mean_credit(cases_of(lambda a, b: (f"{a} on {b}", f"{b} on {a}"), count=600)) < 0.6


def test_chinese_is_read_by_characters() -> None:
    assert mean_credit(cases_of(lambda a, b: (f"{a}在上面", f"{a}不在上面"))) == 1


def test_captions_of_one_picture_never_teach_about_each_other() -> None:
    """Each picture has a false word of its own, which its other cases would give away."""
    cases = [
        Case(image=f"{row // 4}.jpg", true=(f"x{row}",), false=(f"odd{row // 4}",), category="c")
        for row in range(200)
    ]
    assert mean_credit(cases) == 0.5


def test_both_cases_of_a_group_cannot_be_read_right_without_pictures() -> None:
    cases = [
        Case(image=f"{row}.jpg", true=(first,), false=(second,), group=str(group))
        for row, (group, first, second) in enumerate(
            (group, *captions)
            for group in range(50)
            for captions in ((f"a {group}", f"b {group}"), (f"b {group}", f"a {group}"))
        )
    ]
    assert mean_credit(cases) == pytest.approx(0.5)


def test_cases_without_others_to_learn_from_have_no_score() -> None:
    alone = [Case(image="same.jpg", true=("a",), false=("b",), category="c")] * 3
    assert text_only_contests(alone) == [None] * 3
    assert text_only_contests([Case(image="x", true=("a",), false=())]) == [None]


def test_captions_are_compared_once_for_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    whole = text_only._differences
    monkeypatch.setattr(text_only, "_differences", lambda pairs: compared.append(len(pairs)) or whole(pairs))
    assert mean_credit(cases_of(lambda a, b: (f"a {a}", f"no {b}"), count=50)) == 1
    assert compared == [50]


def test_scores_depend_on_the_captions_alone_not_on_the_order_of_cases() -> None:
    cases = cases_of(lambda a, b: (f"a {a} on a {b}", f"a {b} under a {a}"), count=40)
    forward = [contest.credit for contest in text_only_contests(cases) if contest]
    backward = [contest.credit for contest in text_only_contests(cases[::-1]) if contest]
    assert forward == backward[::-1]
