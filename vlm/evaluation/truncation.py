"""How many texts are longer than the model reads."""

import logging
from collections.abc import Sequence

from vlm.inference import Embedder

NOTICED = 0.05
"""A share of texts that loses its end and is worth a warning."""

logger = logging.getLogger(__name__)


def share_truncated(texts: Sequence[str], embedder: Embedder, *, what: str) -> float:
    """The share of texts whose end the model does not see, warned of where it is large.

    Args:
        what: the texts are, for the warning.
    """
    share = embedder.truncated(texts)
    if share > NOTICED and embedder.topology.is_main:
        logger.warning(
            "%.0f %% of %d %s are longer than the context of the model, which does not read their ends",
            *(100 * share, len(texts), what),
        )
    return share
