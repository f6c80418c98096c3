"""What a contrastive loss costs a rank, computed from its sizes."""

from vlm.losses.contrastive import Implementation
from vlm.losses.tiled import TILE

STORED_LIMIT = 64 * 2**20
"""Bytes of logits up to which storing them is no trouble: below, a tile would hardly be smaller."""


def logits_bytes(
    implementation: Implementation, *, pairs: int, all_pairs: int, hard: int = 0, tile: int = TILE
) -> int:
    """Bytes that logits and what is derived from them take at the peak, in float32.

    Args:
        pairs: of this rank.
        all_pairs: of all ranks of its group.
        hard: columns of hard negatives.
    """
    columns = all_pairs + hard
    # The product, its multiple by the scale, the softmax of the backward and a gradient live side by side.
    copies = 16
    match implementation:
        case "dense":
            return copies * all_pairs * columns
        case "local_rows":
            return copies * pairs * (columns + all_pairs)
        case "tiled":
            return copies * min(tile, pairs) * min(tile, columns) + 4 * (pairs + all_pairs)


def choose_implementation(*, pairs: int, all_pairs: int, hard: int = 0) -> Implementation:
    """`local_rows` while its logits are small, else `tiled`; arguments as of `logits_bytes`."""
    stored = logits_bytes("local_rows", pairs=pairs, all_pairs=all_pairs, hard=hard)
    return "local_rows" if stored <= STORED_LIMIT else "tiled"
