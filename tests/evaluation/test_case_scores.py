import itertools
import math
import random

import pytest

from vlm.evaluation.case_fields import Case
from vlm.evaluation.case_scores import (
    Contest,
    Macro,
    best_threshold,
    by_category,
    group_chance,
    group_contests,
    group_metrics,
    share_told_right,
)

EVERY = Macro(min_cases=1, leaves_out=frozenset())


def share_of_orders(contest: Contest) -> float:
    """Of all orders in which equal scores may be put, the share with every true one first."""
    marked = [(score, True) for score in contest.true] + [(score, False) for score in contest.false]
    orders = [
        order
        for order in itertools.permutations(marked)
        if all(first[0] >= second[0] for first, second in itertools.pairwise(order))
    ]
    return sum(all(truth for _, truth in order[: len(contest.true)]) for order in orders) / len(orders)


@pytest.mark.parametrize(("num_true", "num_false"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_credit_equals_the_share_of_orders_that_win(num_true: int, num_false: int) -> None:
    rng = random.Random(0)
    for _ in range(60):
        scores = [float(rng.randrange(3)) for _ in range(num_true + num_false)]
        contest = Contest(scores[:num_true], scores[num_true:])
        assert contest.credit == pytest.approx(share_of_orders(contest))
        assert contest.is_won == (contest.credit == 1)


def test_noise_of_single_precision_is_a_tie_of_one_half() -> None:
    for noise in (1e-7, -1e-7):
        contest = Contest([0.3], [0.3 + noise])
        assert contest.credit == 0.5
        assert not contest.is_won
    assert Contest([0.3], [0.3 - 2e-6]).credit == 1
    assert Contest([0.3], [0.3 + 2e-6]).credit == 0


@pytest.mark.parametrize(
    "contest", [Contest([math.nan], [0.0]), Contest([1.0], [math.nan]), Contest([1.0, math.nan], [0.0])]
)
def test_nan_scores_lose(contest: Contest) -> None:
    assert contest.credit == 0
    assert not contest.is_won


def case(
    true: tuple[str, ...] = ("t",),
    false: tuple[str, ...] = ("f",),
    *,
    of: str | None = None,
    group: str | None = None,
) -> Case:
    return Case(image="", true=true, false=false, category=of, group=group)


def test_macro_weighs_categories_alike_and_leaves_out_what_it_is_told() -> None:
    cases = [case(of="a b") for _ in range(3)] + [case(of="c"), case(of="d"), case(of="a b")]
    values = [1.0, 0.0, 1.0, 0.0, 1.0, None]
    means = {"a_b_acc": 2 / 3, "c_acc": 0.0, "d_acc": 1.0, "acc": 3 / 5}
    expected = pytest.approx(means | {"macro_acc": (2 / 3 + 0 + 1) / 3})
    assert by_category(cases, values, name="acc", macro=EVERY) == expected
    macro = Macro(min_cases=1, leaves_out=frozenset(["c"]))
    assert by_category(cases, values, name="acc", macro=macro)["macro_acc"] == pytest.approx((2 / 3 + 1) / 2)
    macro = Macro(min_cases=3, leaves_out=frozenset())
    assert by_category(cases, values, name="acc", macro=macro)["macro_acc"] == pytest.approx(2 / 3)


def test_a_single_category_has_one_metric_and_none_has_one_too() -> None:
    assert by_category([case(of="a")], [1.0], name="acc", macro=EVERY) == {"a_acc": 1.0}
    assert by_category([case()], [1.0], name="acc", macro=EVERY) == {"acc": 1.0}
    assert by_category([case()], [None], name="acc", macro=EVERY) == {}


def winoground(scores: list[list[float]], group: str = "0") -> tuple[list[Case], list[Contest]]:
    """Scores of two pictures (rows) with two captions (columns)."""
    cases = [case(("c0",), ("c1",), group=group), case(("c1",), ("c0",), group=group)]
    return cases, [Contest([scores[0][0]], [scores[0][1]]), Contest([scores[1][1]], [scores[1][0]])]


def test_groups_of_two_pictures_and_two_captions_score_as_published() -> None:
    rng = random.Random(1)
    cases, contests, expected = [], [], []
    for number in range(200):
        s = [[rng.random(), rng.random()], [rng.random(), rng.random()]]
        found = winoground(s, str(number))
        cases += found[0]
        contests += found[1]
        text = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        image = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        expected.append((text, image, text and image))
    groups = group_contests(cases, contests)
    shares = [sum(column) / 200 for column in zip(*expected, strict=True)]
    assert group_metrics(groups) == pytest.approx(
        dict(zip(("text_score", "image_score", "group_score"), shares, strict=True))
    )
    assert group_chance(groups) == pytest.approx(
        {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
    )


def test_a_tie_wins_no_group() -> None:
    assert set(group_metrics(group_contests(*winoground([[1.0, 1.0], [1.0, 1.0]]))).values()) == {0.0}


def labelled(*scores: tuple[bool, float], group: str) -> tuple[list[Case], list[Contest]]:
    """Pictures of which one sentence is true or false."""
    cases = [case(("s",), (), group=group) if true else case((), ("s",), group=group) for true, _ in scores]
    contests = [Contest([score], []) if true else Contest([], [score]) for true, score in scores]
    return cases, contests


def test_a_sentence_wins_its_group_where_every_true_picture_is_above_every_false_one() -> None:
    won = labelled((True, 0.9), (False, 0.1), (True, 0.4), (False, 0.3), group="won")
    lost = labelled((True, 0.9), (False, 0.1), (True, 0.2), (False, 0.3), group="lost")
    lone = labelled((True, 0.1), (True, 0.2), group="nothing to compare")
    groups = group_contests(won[0] + lost[0] + lone[0], won[1] + lost[1] + lone[1])
    assert group_metrics(groups) == {"group_score": 0.5}
    assert group_chance(groups) == pytest.approx({"group_score": 1 / 6})


def test_chance_of_a_group_is_left_open_where_not_all_is_compared() -> None:
    """Four pictures, each with its own caption before the three others: 24 of 48 comparisons."""
    names = ("a", "b", "c", "d")
    cases = [case((own,), tuple(name for name in names if name != own), group="g") for own in names]
    chance = group_chance(group_contests(cases, [Contest([1.0], [0.0] * 3)] * 4))
    assert chance == pytest.approx({"text_score": 1 / 4**4, "image_score": 1 / 4**4})


def test_threshold_is_the_best_of_all_that_could_be_tried() -> None:
    rng = random.Random(2)
    for _ in range(100):
        scores = [rng.randrange(6) / 6 for _ in range(8)]
        contests = [Contest(scores[:4], []), Contest([], scores[4:])]
        tried = [-1.0, 2.0, *(score + 1 / 12 for score in scores)]
        best = max(share_told_right(contests, threshold) for threshold in tried)
        assert share_told_right(contests, best_threshold(contests)) == best
        assert math.isfinite(best_threshold(contests))


def test_captions_told_right_are_counted_one_by_one() -> None:
    contests = [Contest([0.5, 0.1], [0.2]), Contest([], [0.9])]
    assert share_told_right(contests, 0.5) == 2 / 4
