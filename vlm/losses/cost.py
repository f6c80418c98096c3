"""What a loss costs a rank, computed from its sizes.

b pairs on a rank, n on all ranks of its group, which are n / b, h columns of hard negatives, d dimensions.
Vectors and sums are float32. Bytes of traffic are those a rank receives where collectives go round a ring.
"""

import math
from dataclasses import dataclass
from typing import Literal

from vlm.losses.contrastive import Implementation
from vlm.losses.tiled import GPU_TILE

STORED_LIMIT = 64 * 2**20
"""Bytes of logits up to which storing them is no trouble: below, a tile would hardly be smaller."""
FLOAT = 4

Kind = Literal["softmax", "sigmoid"]


def logits_bytes(
    implementation: Implementation, *, pairs: int, all_pairs: int, hard: int = 0, tile: int = GPU_TILE
) -> int:
    """Bytes that logits and what is derived from them take at the peak, which is in the backward.

    Args:
        pairs: b. all_pairs: n. hard: h.
    """
    columns = all_pairs + hard
    # Beside the logits, the backward of a log-sum-exp has a difference, its exponential and their product.
    match implementation:
        case "dense":  # and both directions send a gradient to the one matrix
            return 5 * FLOAT * all_pairs * columns
        case "local_rows":
            return FLOAT * pairs * (columns + all_pairs) + 3 * FLOAT * pairs * columns
        case "tiled":
            return 4 * FLOAT * min(tile, pairs) * min(tile, columns) + FLOAT * (pairs + 2 * all_pairs)


def gathered_bytes(
    implementation: Implementation, *, kind: Kind, pairs: int, all_pairs: int, dim: int, hard: int = 0
) -> int:
    """Bytes of the vectors of other ranks and of their gradients, which live side by side in the backward.

    Args:
        pairs: b. all_pairs: n. dim: d. hard: h.
    """
    if all_pairs == pairs:
        return 0
    return 2 * FLOAT * dim * (_gathered_matrices(implementation, kind) * all_pairs + hard)


def traffic_bytes(
    implementation: Implementation, *, kind: Kind, pairs: int, all_pairs: int, dim: int, hard: int = 0
) -> int:
    """Bytes that a rank receives for the loss, forward and backward.

    Args:
        pairs: b. all_pairs: n. dim: d. hard: h.
    """
    others = all_pairs - pairs
    rows = _gathered_matrices(implementation, kind) * others + hard * others // all_pairs
    vectors = 2 * FLOAT * dim * rows  # gathered, and their gradients scattered
    if implementation != "tiled" or kind == "sigmoid":
        return vectors
    # Maxima and sums of the columns, each all-reduced; then the gradient of each column, gathered.
    return vectors + FLOAT * (2 * 2 * others + others)


def loss_flops(
    implementation: Implementation, *, kind: Kind, pairs: int, all_pairs: int, dim: int, hard: int = 0
) -> int:
    """Floating-point operations of the matrix products, two for each multiply-add, forward and backward."""
    rows = all_pairs if implementation == "dense" else pairs
    columns = all_pairs + hard
    if implementation == "local_rows" and kind == "softmax":
        columns += all_pairs  # of texts over images
    products = 4 if implementation == "tiled" else 3  # tiles are computed again
    return 2 * products * rows * columns * dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCost:
    """All of it for one step of a rank.

    Args:
        centres_bytes: of class centres: weights, moments, and what is copied of them for a step.
    """

    implementation: Implementation
    logits_bytes: int
    gathered_bytes: int
    traffic_bytes: int
    flops: int
    centres_bytes: int = 0

    @classmethod
    def of(
        cls,
        implementation: Implementation,
        *,
        kind: Kind,
        pairs: int,
        all_pairs: int,
        dim: int,
        hard: int = 0,
    ) -> "LossCost":
        """From the formulas of this file."""
        sizes = {"pairs": pairs, "all_pairs": all_pairs, "hard": hard}
        return cls(
            implementation=implementation,
            logits_bytes=logits_bytes(implementation, pairs=pairs, all_pairs=all_pairs, hard=hard),
            gathered_bytes=gathered_bytes(implementation, kind=kind, dim=dim, **sizes),
            traffic_bytes=traffic_bytes(implementation, kind=kind, dim=dim, **sizes),
            flops=loss_flops(implementation, kind=kind, dim=dim, **sizes),
        )


def class_cost(
    *, num_classes: int, rate: float, pairs: int, labels: int, dim: int, world_size: int
) -> LossCost:
    """Of a softmax over class centres that are cut into the rows of ranks; see `class_logits`.

    The classes of the samples are taken to be drawn at random; real ones repeat more, and are fewer.

    Args:
        num_classes: C. rate: r, the share of the classes in a step. pairs: b. labels: l, of a sample.
        world_size: W; all its ranks have C / W rows, and those of them that take part once more, with their
            gradient.
    """
    rows, samples = -(-num_classes // world_size), pairs * world_size
    own = -math.expm1(-labels * samples / num_classes)  # share of the classes that some sample has
    sampled = math.ceil(max(rate, own) * rows)
    numbers = 2 * labels + 2 * (labels + 2)  # labels, in 8 bytes; cosines, maxima and sums, all-reduced
    return LossCost(
        implementation="tiled",
        logits_bytes=4 * FLOAT * min(GPU_TILE, samples) * min(GPU_TILE, sampled),
        gathered_bytes=2 * FLOAT * dim * samples if world_size > 1 else 0,
        traffic_bytes=FLOAT * (2 * dim + numbers) * (samples - pairs),
        flops=2 * 4 * samples * sampled * dim,
        centres_bytes=3 * FLOAT * rows * dim + 2 * FLOAT * sampled * dim,
    )


def choose_implementation(*, pairs: int, all_pairs: int, hard: int = 0) -> Implementation:
    """`local_rows` while its logits are small, else `tiled`; arguments as of `logits_bytes`."""
    stored = logits_bytes("local_rows", pairs=pairs, all_pairs=all_pairs, hard=hard)
    return "local_rows" if stored <= STORED_LIMIT else "tiled"


def _gathered_matrices(implementation: Implementation, kind: Kind) -> int:
    """Texts; images too where rows of other ranks, or columns of images, are computed from them."""
    return 2 if implementation == "dense" or (implementation == "local_rows" and kind == "softmax") else 1
