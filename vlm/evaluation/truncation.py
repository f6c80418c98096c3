"""Vectors of texts, of which some may be longer than the model reads."""

import logging
from collections.abc import Sequence

from vlm.inference import Embedder, TextEmbeddings

NOTICED = 0.05
"""A share of texts that loses its end and is worth a warning."""

logger = logging.getLogger(__name__)


def embedded(texts: Sequence[str], embedder: Embedder, *, what: str, ensemble: int = 1) -> TextEmbeddings:
    """Vectors of texts, with a warning where the ends of many are not seen.

    Args:
        what: the texts are, for the warning.
        ensemble: as of `Embedder.texts`.
    """
    found = embedder.texts(texts, ensemble=ensemble)
    if found.truncated > NOTICED and embedder.topology.is_main:
        logger.warning(
            "%.0f %% of %d %s are longer than the context of the model, which does not read their ends",
            *(100 * found.truncated, len(texts), what),
        )
    return found
