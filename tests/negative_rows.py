"""What hard negatives a sidecar has."""

from vlm.data.negatives import Negative, Negatives


def negative_rows(negatives: Negatives) -> list[tuple[Negative, ...]]:
    """Those of every sample."""
    return [negatives[row].negatives for row in range(len(negatives))]
