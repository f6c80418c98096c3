import itertools
import math

import numpy as np
import pytest

from vlm.evaluation.rank_correlation import area_under_curve, kendall, mean_ranks, spearman


def tied(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 8, count).astype(float)
    return x, np.round(x / 3 + generator.normal(size=count))


def slow_kendall(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    pairs = itertools.combinations(zip(x, y, strict=True), 2)
    signs = [(np.sign(a - c), np.sign(b - d)) for (a, b), (c, d) in pairs]
    difference = sum(a * b for a, b in signs)
    apart = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    classes = min(len(set(x)), len(set(y)))
    return difference / math.sqrt(apart[0] * apart[1]), 2 * difference / (
        len(x) ** 2 * (classes - 1) / classes
    )


@pytest.mark.parametrize("seed", range(6))
def test_kendall_equals_a_count_over_all_pairs(seed: int) -> None:
    x, y = tied(seed)
    assert kendall(x, y) == pytest.approx(slow_kendall(x, y), abs=1e-12)
    smooth = np.random.default_rng(seed).normal(size=40)
    assert kendall(smooth, y) == pytest.approx(slow_kendall(smooth, y), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_all_equal_those_of_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = tied(seed, count=300)
    assert kendall(x, y).tau_b == pytest.approx(stats.kendalltau(x, y, variant="b").statistic)
    assert kendall(x, y).tau_c == pytest.approx(stats.kendalltau(x, y, variant="c").statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert mean_ranks(x).tolist() == stats.rankdata(x).tolist()


def test_published_tables() -> None:
    """Values worked out by hand, and scipy's own example of tau-b."""
    x, y = np.array([12.0, 2, 1, 12, 2]), np.array([1.0, 4, 7, 1, 0])
    assert kendall(x, y).tau_b == pytest.approx(-0.47140452079103173)
    one_to_five, swapped = np.arange(1.0, 6), np.array([5.0, 6, 7, 8, 7])
    assert spearman(one_to_five, swapped) == pytest.approx(0.8207826816681233)
    assert mean_ranks(np.array([3.0, 1, 3, 3, 0])).tolist() == [4, 2, 4, 4, 1]


def test_the_extremes() -> None:
    x = np.arange(9.0)
    assert kendall(x, x) == pytest.approx((1, 1))
    assert kendall(x, -x) == pytest.approx((-1, -1))
    assert (spearman(x, x), spearman(x, -x)) == pytest.approx((1, -1))
    constant = np.zeros(9)
    assert (*kendall(x, constant), *kendall(constant, x), spearman(constant, x)) == (0, 0, 0, 0, 0)


def test_the_area_counts_equal_scores_as_half() -> None:
    score, true = np.array([3.0, 1, 2, 2, 0]), np.array([True, False, True, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in score[true] for b in score[~true]]
    assert area_under_curve(score, true) == pytest.approx(sum(pairs) / 6)
    assert area_under_curve(np.zeros(5), true) == 0.5
