"""The first centroids: distinct samples at random.

k-means++ was tried in their place and left the result as it was: where noise keeps the samples of a cluster
nearly as far apart as those of different ones, its distances tell little. What random samples miss is mended
by relocation (`vlm.curation.kmeans`).
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from vlm.distributed import Topology, sum_over_ranks
from vlm.inference.features import FeatureSet


def first_centroids(
    features: FeatureSet, topology: Topology, *, k: int, seed: int, device: torch.device
) -> Float[Tensor, "k d"]:
    """Unit vectors of k distinct samples, on every rank the same, on the CPU.

    Args:
        k: at most the number of samples that are not broken.
    """
    starts = np.cumsum([0, *(shard.rows for shard in features.manifest.shards)])
    wanted = _draw(features, starts, k, np.random.default_rng(seed))
    out = torch.zeros(k, features.manifest.dim)
    for shard in range(topology.rank, len(starts) - 1, topology.world_size):
        first, last = np.searchsorted(wanted, (starts[shard], starts[shard + 1]))
        if first < last:
            rows = features.rows(shard, 0, int(starts[shard + 1] - starts[shard]))
            out[first:last] = rows[torch.from_numpy(wanted[first:last] - starts[shard])].float()
    return torch.nn.functional.normalize(sum_over_ranks(out.to(device)), dim=1).cpu()


def _draw(
    features: FeatureSet, starts: Int64[ndarray, "s"], count: int, rng: np.random.Generator
) -> Int64[ndarray, "n"]:
    """Distinct rows of the whole set that are not broken, ascending.

    Args:
        starts: the first row of each shard, and behind them the number of all rows.
    """
    broken = np.concatenate([features.broken(n).numpy() + start for n, start in enumerate(starts[:-1])])
    drawn = np.sort(rng.choice(int(starts[-1]) - len(broken), size=count, replace=False, shuffle=False))
    # the n-th of the rows that are not broken stands behind as many broken ones
    return drawn + np.searchsorted(broken - np.arange(len(broken)), drawn, side="right")
