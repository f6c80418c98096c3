"""What each query of a cell got, and how two cells of one data set differ."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from vlm.evaluation.bootstrap import Difference, paired
from vlm.evaluation.sweep_report.cells import Cell

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Labels:
    """A text for each row, as its number in a list of different ones."""

    code: Int64[ndarray, " n"]
    names: list[str]

    def of(self, row: int) -> str:
        """The text of a row."""
        return self.names[int(self.code[row])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The queries that a metric is a mean over."""

    picture: Int64[ndarray, " n"]
    values: Float64[ndarray, " n"]
    balanced: bool
    """Whether the metric is the mean over categories of the means within."""
    category: Labels
    answer: Labels
    asked: Labels

    @property
    def groups(self) -> Int64[ndarray, " n"] | None:
        """The categories, as far as the metric's mean knows them."""
        return self.category.code if self.balanced else None


class RowReader:
    """Reads outcomes; what cannot be read is warned of once, and counts as not there."""

    def __init__(self) -> None:
        self.damaged: dict[Path, str] = {}

    def read(self, cell: Cell, metric: str) -> Rows | None:
        """The rows of a metric; None where there are none."""
        if cell.outcomes in self.damaged or not cell.outcomes.is_file():
            return None
        try:
            return _rows(cell.outcomes, metric)
        except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
            self.damaged[cell.outcomes] = str(error).partition("\n")[0] or type(error).__name__
            logger.warning(
                "%s cannot be read, so its cell is compared with no other: %s; delete it and its .json, and "
                "run vlm sweep again",
                cell.outcomes,
                self.damaged[cell.outcomes],
            )
            return None


def aligned(a: Rows, b: Rows) -> bool:
    """Whether row i of both is the same query."""
    return np.array_equal(a.picture, b.picture)


def difference(a: Rows | None, b: Rows | None) -> Difference | None:
    """How much better `a` is, by the queries of both; None where they cannot be compared."""
    if a is None or b is None or not len(a.values) or not aligned(a, b):
        return None
    return paired(a.values, b.values, a.groups)


def _rows(path: Path, metric: str) -> Rows | None:
    with pq.ParquetFile(path) as file:
        if metric not in file.schema_arrow.names:
            return None
        table = file.read(columns=["picture", "category", "answer", "asked", metric])
        about = json.loads((file.schema_arrow.metadata or {}).get(b"vlm", b"{}"))
    values = np.asarray(table[metric].to_numpy(), dtype=np.float64)
    present = ~np.isnan(values)  # null where the row is of another query
    return Rows(
        picture=np.asarray(table["picture"].to_numpy(), dtype=np.int64)[present],
        values=values[present],
        balanced=metric in about.get("balanced", []),
        category=_labels(table["category"], present),
        answer=_labels(table["answer"], present),
        asked=_labels(table["asked"], present),
    )


def _labels(column: pa.ChunkedArray, present: Bool[ndarray, " m"]) -> Labels:
    encoded = column.combine_chunks().fill_null("").dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return Labels(
        np.asarray(encoded.indices.to_numpy(), dtype=np.int64)[present], encoded.dictionary.to_pylist()
    )
