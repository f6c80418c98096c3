import math
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from numpy import ndarray

from vlm.evaluation.bootstrap import interval, mean, paired

CATEGORIES = ["车", "cat", "dog", "a rare one"]


def slow_means(values: Sequence[float], categories: Sequence[str] | None, *, resamples: int) -> list[float]:
    """One draw at a time, one query at a time."""
    generator, n = np.random.default_rng(17), len(values)
    means = []
    for _ in range(resamples):
        found: dict[str, list[float]] = {}
        for row in generator.integers(n, size=n):
            found.setdefault(categories[row] if categories else "", []).append(values[row])
        means.append(sum(sum(some) / len(some) for some in found.values()) / len(found))
    return means


def outcomes(n: int, *, kinds: int, seed: int) -> ndarray:
    """Values of `kinds` sorts."""
    generator = np.random.default_rng(seed)
    return generator.integers(kinds, size=n) / (kinds - 1)


def named(n: int, *, seed: int) -> list[str]:
    """Categories, one of which some draws lose."""
    drawn = np.random.default_rng(seed).choice(len(CATEGORIES), size=n, p=[0.5, 0.3, 0.17, 0.03])
    return [CATEGORIES[number] for number in drawn]


@pytest.mark.parametrize("kinds", [2, 1000], ids=["right or wrong", "any number"])
@pytest.mark.parametrize("balanced", [False, True])
def test_draws_are_spread_as_those_of_a_slow_loop(kinds: int, balanced: bool) -> None:
    values, categories = outcomes(60, kinds=kinds, seed=3), named(60, seed=4) if balanced else None
    expected = np.quantile(slow_means(values.tolist(), categories, resamples=4000), [0.025, 0.5, 0.975])
    low, high = interval(values, categories, resamples=20_000)
    middle = sum(interval(values, categories, resamples=20_000, level=1e-9)) / 2
    # Four times the error of a percentile of 4,000 draws, or where shares come in steps, a step.
    tolerance = max(0.06 * (expected[2] - expected[0]), 1.01 / 60 if kinds == 2 and not balanced else 0)
    assert [low, middle, high] == pytest.approx(expected.tolist(), abs=tolerance)


def test_few_and_many_groups_are_drawn_alike() -> None:
    """Two ways to draw, by what is quicker: rows of 0 and 1, and the same rows told apart by a hair."""
    values = outcomes(400, kinds=2, seed=5)
    apart = values + 1e-9 * np.arange(400)
    assert interval(values, None, resamples=20_000) == pytest.approx(
        interval(apart, None, resamples=20_000), abs=1.01 / 400
    )


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_shares_have_the_interval_of_the_normal_approximation(share: float) -> None:
    values = (np.arange(5000) < 5000 * share).astype(np.float64)
    half = 1.96 * math.sqrt(share * (1 - share) / 5000)
    low, high = interval(values, None, resamples=20_000)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.05 * half)


@pytest.mark.parametrize("balanced", [False, True])
def test_95_of_100_intervals_hold_the_truth(balanced: bool) -> None:
    generator = np.random.default_rng(6)
    chances = np.array([0.9, 0.6, 0.3])
    truth, tries, held = float(chances.mean()), 600, 0
    for number in range(tries):
        code = generator.integers(3, size=300)
        values = (generator.random(300) < chances[code]).astype(np.float64)
        low, high = interval(values, code if balanced else None, resamples=400, seed=number)
        held += low <= truth <= high
    assert 0.92 < held / tries < 0.975


def test_difference_of_the_same_queries_is_narrower_than_of_others() -> None:
    generator = np.random.default_rng(7)
    a = (generator.random(2000) < 0.6).astype(np.float64)
    b = a.copy()
    b[:40] = 0  # wrong on a few more: each alone is uncertain by 0.02
    found = paired(a, b, None)
    assert found.mean == pytest.approx(float(a.mean() - b.mean()))
    assert found.low > 0
    assert found.significant
    assert found.p < 0.01
    separate = interval(a, None)[1] - interval(a, None)[0]
    assert found.high - found.low < separate / 2


def test_difference_turns_its_sign_with_its_sides() -> None:
    a, b, categories = outcomes(300, kinds=2, seed=8), outcomes(300, kinds=2, seed=9), named(300, seed=10)
    there = paired(a, b, categories, resamples=20_000)
    back = paired(b, a, categories, resamples=20_000)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.01)
    assert there.p == pytest.approx(back.p, rel=0.1)
    assert there.mean == pytest.approx(mean(a, categories) - mean(b, categories))


def test_p_of_equal_models_is_seldom_small() -> None:
    generator = np.random.default_rng(11)
    draws = [(generator.random((2, 200)) < 0.5).astype(np.float64) for _ in range(300)]
    small = [paired(a, b, None, resamples=300, seed=n).p < 0.05 for n, (a, b) in enumerate(draws)]
    assert 0.02 < np.mean(small) < 0.09
    assert paired(draws[0][0], draws[0][0], None).p == 1


def test_no_query_has_no_interval() -> None:
    nothing = np.zeros(0)
    assert all(math.isnan(end) for end in interval(nothing, None))
    assert math.isnan(paired(nothing, nothing, None).p)
    assert not paired(nothing, nothing, None).significant


def test_the_same_seed_gives_the_same_interval() -> None:
    values = outcomes(500, kinds=7, seed=12)
    assert interval(values, None) == interval(values, None) != interval(values, None, seed=1)


@pytest.mark.parametrize("kinds", [2, 100_000])
@pytest.mark.parametrize("balanced", [False, True])
def test_many_queries_take_little_time_and_memory(kinds: int, balanced: bool) -> None:
    values = outcomes(10_000, kinds=kinds, seed=13)
    code = np.random.default_rng(14).integers(100, size=50_000)
    started = time.process_time()
    interval(values, code[:10_000] if balanced else None)
    assert time.process_time() - started < 1.5  # a third of that alone on a slow core
    tracemalloc.start()
    interval(outcomes(50_000, kinds=kinds, seed=15), code if balanced else None, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
