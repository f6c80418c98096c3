"""Intervals of means and of differences between means, by drawing the queries anew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8
from numpy import ndarray

_COUNTS_AT_ONCE = 1 << 21
"""In memory as wide numbers."""


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
    group = _alike(values, code)
    if len(group.values) * 20 <= len(values):  # one draw a group is quicker than one a row if groups are few
        generator, share = np.random.default_rng(seed), group.sizes / len(values)
        return _means(
            group,
            lambda some: generator.multinomial(len(values), share, size=some.stop - some.start),
            resamples,
        )
    # A row is as likely to be drawn as any other: which of the counts is whose does not matter.
    order, drawn = np.argsort(code, kind="stable"), _row_counts(len(values), resamples, seed)
    rows = _Groups(values[order], np.ones(len(values), dtype=np.int64), _first_of_each(code[order]))
    return _means(rows, drawn.__getitem__, resamples)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows of one category and one value; the groups of a category are neighbours."""

    values: Float64[ndarray, " groups"]
    sizes: Int64[ndarray, " groups"]
    starts: Int64[ndarray, " categories"]
    """The first group of each category."""


def _alike(values: Float64[ndarray, " n"], code: Int64[ndarray, " n"]) -> _Groups:
    distinct, place = np.unique(values, return_inverse=True)
    key, sizes = np.unique(code * len(distinct) + place, return_counts=True)
    return _Groups(
        distinct[key % len(distinct)], sizes.astype(np.int64), _first_of_each(key // len(distinct))
    )


def _first_of_each(ordered: Int64[ndarray, " groups"]) -> Int64[ndarray, " categories"]:
    return np.flatnonzero(np.diff(ordered, prepend=-1)).astype(np.int64)


def _means(
    groups: _Groups, draw: Callable[[slice], Int[ndarray, "some groups"]], resamples: int
) -> Float64[ndarray, " resamples"]:
    """The mean over categories of the means within, of each draw.

    Args:
        draw: how many rows of each group there are in some of the draws.
    """
    at_once, means = max(1, _COUNTS_AT_ONCE // len(groups.values)), []
    for start in range(0, resamples, at_once):
        counts = draw(slice(start, min(start + at_once, resamples)))
        if len(groups.starts) == 1:
            means.append(counts @ groups.values / groups.sizes.sum())
            continue
        sums = np.add.reduceat(counts * groups.values, groups.starts, axis=1)
        sizes = np.add.reduceat(counts, groups.starts, axis=1, dtype=np.int64)
        found = sizes > 0
        means.append(np.where(found, sums / np.maximum(sizes, 1), 0).sum(axis=1) / found.sum(axis=1))
    return np.concatenate(means)


@lru_cache(maxsize=1)  # the cells of a column are compared one after the other by the same draws
def _row_counts(n: int, resamples: int, seed: int) -> UInt8[ndarray, "resamples n"]:
    """How often each row is in each draw of n rows; more than 255 times has no chance."""
    generator, counts = np.random.default_rng(seed), np.empty((resamples, n), dtype=np.uint8)
    for draw in counts:
        draw[:] = np.bincount(generator.integers(n, size=n, dtype=np.int32), minlength=n)
    return counts


def _codes(categories: Sequence[str] | Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
    """A number from 0 for each category that occurs."""
    return np.unique(np.asarray(categories), return_inverse=True)[1].astype(np.int64)


def _percentiles(means: Float64[ndarray, " resamples"], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
