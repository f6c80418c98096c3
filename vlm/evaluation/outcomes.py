"""What each query of an evaluation got: of what its metrics are means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """One row a query, in the order of the data set, so that the rows of two models can be compared."""

    query: str
    """What a row is: `picture`, `caption`, `case`, `group` or `class`."""
    picture: Int64[ndarray, " n"]
    """Position in the data set of the picture that the row is about; of a class its first."""
    values: Mapping[str, Float64[ndarray, " n"]]
    """Of each metric that is a mean over rows, or over categories, the value of each row; nan where the row
    does not count."""
    balanced: frozenset[str] = frozenset()
    """Those metrics that are the mean over categories of the means within them."""
    category: Sequence[str]
    """The true class of each row, or its kind of case; empty where it has none."""
    answer: Sequence[str]
    """What the model said: the class it guessed, the caption it found; empty where that is not one text."""
    asked: Sequence[str]
    """What it was asked about beside the picture: a caption; empty where there is none."""


def outcomes(
    query: str,
    values: Mapping[str, ArrayLike],
    *,
    picture: ArrayLike | None = None,
    category: Sequence[str] | None = None,
    answer: Sequence[str] | None = None,
    asked: Sequence[str] | None = None,
    balanced: Sequence[str] = (),
) -> Outcomes:
    """`Outcomes` of whatever numpy makes arrays of.

    Args:
        picture: None where row i is about picture i.
    """
    arrays = {metric: np.asarray(rows, np.float64) for metric, rows in values.items()}
    count = len(next(iter(arrays.values())))
    return Outcomes(
        query=query,
        picture=np.arange(count) if picture is None else np.asarray(picture, np.int64),
        values=arrays,
        balanced=frozenset(balanced),
        category=[""] * count if category is None else category,
        answer=[""] * count if answer is None else answer,
        asked=[""] * count if asked is None else asked,
    )
