"""How well the order of some scores agrees with that of ratings; what is equal is counted, never drawn."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray


class Kendall(NamedTuple):
    """Both are 0 where one of the two orders tells nothing apart."""

    tau_b: float
    tau_c: float


def kendall(x: Float64[ndarray, " n"], y: Float64[ndarray, " n"]) -> Kendall:
    """Kendall's rank correlation, corrected for ties (tau-b), and Stuart's for tables that are not square."""
    _, x = np.unique(x, return_inverse=True)
    _, y = np.unique(y, return_inverse=True)
    pairs = len(x) * (len(x) - 1) // 2
    tied_x, tied_y = _tied(x), _tied(y)
    both = _tied(x * (int(y.max()) + 1) + y)
    discordant = _inversions(y[np.lexsort((y, x))])
    difference = pairs - tied_x - tied_y + both - 2 * discordant  # concordant pairs less discordant ones
    free = float(pairs - tied_x) * float(pairs - tied_y)
    if free == 0:
        return Kendall(0.0, 0.0)
    classes = min(int(x.max()), int(y.max())) + 1
    return Kendall(difference / free**0.5, 2 * difference * classes / (len(x) ** 2 * (classes - 1)))


def spearman(x: Float64[ndarray, " n"], y: Float64[ndarray, " n"]) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank; 0 as in `Kendall`."""
    a, b = (ranks - ranks.mean() for ranks in (mean_ranks(x), mean_ranks(y)))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def area_under_curve(score: Float64[ndarray, " n"], true: Bool[ndarray, " n"]) -> float:
    """How often a true one scores above a false one; equal scores count one half."""
    positive = int(true.sum())
    wins = mean_ranks(score)[true].sum() - positive * (positive + 1) / 2
    return float(wins / (positive * (len(true) - positive)))


def mean_ranks(values: Float64[ndarray, " n"]) -> Float64[ndarray, " n"]:
    """From 1 on; equal values share the mean of their places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def _tied(values: Int64[ndarray, " n"]) -> int:
    """Pairs of equal values."""
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: Int64[ndarray, " n"]) -> int:
    """Pairs of which the first is larger.

    The two agree in their bits down to one that only the first has: pairs are counted bit by bit, within what
    agrees above it.
    """
    total = 0
    for bit in range(int(values.max()).bit_length()):
        above = values >> (bit + 1)
        order = np.argsort(above, kind="stable")
        has = (values[order] >> bit) & 1
        before = has.cumsum() - has
        first = np.searchsorted(above[order], above[order])  # where each group begins
        total += int((before - before[first])[has == 0].sum())
    return total
