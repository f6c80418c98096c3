"""Intervals of means and of differences between means, by drawing the queries anew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

_DRAWN_AT_ONCE = 1 << 21
"""Counts in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much better the first of two is on the same queries."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided: how often no difference at all would look this large; never 0, for want of draws."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def interval(
    values: Float64[ndarray, " n"],
    categories: Sequence[str] | Int64[ndarray, " n"] | None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a mean over queries; (nan, nan) of no query.

    Queries are drawn with replacement from all of them. A category that a draw has lost is left out of that
    draw's mean, as one without queries is left out of the metric.

    Args:
        categories: of each query, for a metric that is the mean over categories of the means within; None
            for a plain mean.
        level: share of such intervals that hold the truth.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    return _percentiles(_resampled_means(values, categories, resamples=resamples, seed=seed), level)


def paired(
    a: Float64[ndarray, " n"],
    b: Float64[ndarray, " n"],
    categories: Sequence[str] | Int64[ndarray, " n"] | None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """The metric of `a` less that of `b`, where row i of both is the same query; nan of no query.

    Each draw takes the same queries of both, so what makes a query hard for both does not widen the interval.
    Arguments are those of `interval`.
    """
    if len(a) == 0:
        nan = float("nan")
        return Difference(mean=nan, low=nan, high=nan, p=nan)
    # Given the draw both metrics are linear in the values: their difference is the metric of the difference.
    difference = a - b
    means = _resampled_means(difference, categories, resamples=resamples, seed=seed)
    low, high = _percentiles(means, level)
    tail = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Difference(
        mean=mean(difference, categories), low=low, high=high, p=min(1.0, 2 * tail / (resamples + 1))
    )


def mean(values: Float64[ndarray, " n"], categories: Sequence[str] | Int64[ndarray, " n"] | None) -> float:
    """The metric itself: the plain mean, or the mean over categories of the means within."""
    if categories is None:
        return float(values.mean())
    code = _codes(categories)
    return float(np.mean(np.bincount(code, weights=values) / np.bincount(code)))


def _resampled_means(
    values: Float64[ndarray, " n"],
    categories: Sequence[str] | Int64[ndarray, " n"] | None,
    *,
    resamples: int,
    seed: int,
) -> Float64[ndarray, " resamples"]:
    """The metric of each draw."""
    code = np.zeros(len(values), dtype=np.int64) if categories is None else _codes(categories)
    group, value, starts = _alike(values, code)
    means = []
    for counts in _draws(group, len(value), resamples=resamples, seed=seed):
        sums = np.add.reduceat(counts * value, starts, axis=1)
        sizes = np.add.reduceat(counts, starts, axis=1)
        found = sizes > 0
        means.append(np.where(found, sums / np.maximum(sizes, 1), 0).sum(axis=1) / found.sum(axis=1))
    return np.concatenate(means)


def _alike(
    values: Float64[ndarray, " n"], code: Int64[ndarray, " n"]
) -> tuple[Int64[ndarray, " n"], Float64[ndarray, " groups"], Int64[ndarray, " categories"]]:
    """The group of each row, each group's value, and the first group of each category.

    Rows of one category and one value are one group; the groups of a category are neighbours.
    """
    distinct, place = np.unique(values, return_inverse=True)
    key, group = np.unique(code * len(distinct) + place, return_inverse=True)
    starts = np.flatnonzero(np.diff(key // len(distinct), prepend=-1))
    return group, distinct[key % len(distinct)], starts


def _draws(
    group: Int64[ndarray, " n"], num_groups: int, *, resamples: int, seed: int
) -> Iterator[Int64[ndarray, "some groups"]]:
    """How many rows of each group are in each draw of as many rows as there are."""
    generator, n = np.random.default_rng(seed), len(group)
    at_once = max(1, _DRAWN_AT_ONCE // num_groups)
    for start in range(0, resamples, at_once):
        some = min(at_once, resamples - start)
        if num_groups * 20 <= n:  # one draw a group is quicker than one a row only if groups are few
            yield generator.multinomial(n, np.bincount(group) / n, size=some)
        else:
            rows = (generator.integers(n, size=n, dtype=np.int32) for _ in range(some))
            yield np.stack([np.bincount(group[drawn], minlength=num_groups) for drawn in rows])


def _codes(categories: Sequence[str] | Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
    """A number from 0 for each category that occurs."""
    return np.unique(np.asarray(categories), return_inverse=True)[1].astype(np.int64)


def _percentiles(means: Float64[ndarray, " resamples"], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
