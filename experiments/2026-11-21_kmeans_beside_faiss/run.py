"""Time and normalised mutual information with planted clusters: k-means of `vlm cluster` beside faiss.

Both get the same fp16 unit vectors: planted centres in random directions, sizes that differ (log-normal), and
noise of `--noise` times the centre's length. Which of the two comes first alternates by round.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

import vlm
from vlm.curation import kmeans
from vlm.curation.kmeans import Passes, Settings, lloyd
from vlm.distributed import Topology
from vlm.inference.features import FeatureSet, Manifest, feature_file, shard_entries, write_features

SHARD = 10_000


def planted(samples: int, k: int, dim: int, *, noise: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors, fp16, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((k, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    shares = rng.lognormal(sigma=0.5, size=k)
    labels = rng.choice(k, size=samples, p=shares / shares.sum())
    x = centres[labels] + rng.standard_normal((samples, dim), dtype=np.float32) * (noise / dim**0.5)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x).half(), labels


def write_folder(folder: Path, features: torch.Tensor) -> FeatureSet:
    """The vectors as `vlm embed` would have written them."""
    parts = features.split(SHARD)
    shards = shard_entries([f"{n:05d}.tar" for n in range(len(parts))], [len(part) for part in parts])
    manifest = Manifest(
        model={"sha256": "", "step": 0, "read_from": ""}, preprocess={}, dim=features.shape[1], bf16=False,
        shards=shards, num_broken=0,
    )  # fmt: skip
    for shard, part in zip(shards, parts, strict=True):
        write_features(feature_file(folder, shard), part.clone(), torch.zeros(0, dtype=torch.int64))
    manifest.write(folder)
    return FeatureSet.open(folder, key="features")


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised by the mean of the two entropies: 1 where each tells the other."""
    pairs, counts = np.unique(a.astype(np.int64) * (int(b.max()) + 1) + b, return_counts=True)
    joint = counts / len(a)
    pa, pb = np.bincount(a) / len(a), np.bincount(b) / len(b)
    left, right = np.divmod(pairs, int(b.max()) + 1)
    information = (joint * np.log(joint / (pa[left] * pb[right]))).sum()
    entropies = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (pa, pb)]
    return float(information / np.mean(entropies))


def ours(features: FeatureSet, k: int, iterations: int) -> np.ndarray:
    """Centroids; every iteration reads the files again."""
    passes = Passes(features, Topology(rank=0, world_size=1), device="cpu", after_block=lambda rows: None)
    settings = Settings(k=k, iterations=iterations, seed=0)
    state = lloyd(passes, settings, begun=None, keep=lambda state: None)
    last = state.history[-1]
    relocated = sum(iteration.relocated for iteration in state.history)
    print(
        f"    {len(state.history) - 1} iterations, {relocated} relocated, {last.left_empty} empty, "
        f"imbalance {last.imbalance:.3f}, mean cosine {last.objective:.4f}"
    )
    return state.centroids.numpy()


def lloyd_alone(features: FeatureSet, k: int, iterations: int) -> np.ndarray:
    """The same without relocation."""
    known, kmeans._RELOCATE_EVERY = kmeans._RELOCATE_EVERY, 1 << 30
    try:
        return ours(features, k, iterations)
    finally:
        kmeans._RELOCATE_EVERY = known


def faiss_defaults(x: np.ndarray, k: int, **changes: object) -> np.ndarray:
    """`faiss.Kmeans` as it comes: 25 iterations, Euclidean, at most 256 samples a centroid."""
    clustering = faiss.Kmeans(x.shape[1], k, **changes)
    clustering.train(x)
    return clustering.centroids


def labels_of(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid: Euclidean, which for unit centroids is that of largest cosine."""
    rows, columns = torch.from_numpy(x), torch.from_numpy(centroids)
    half = (columns**2).sum(1) / 2
    return torch.cat([(part @ columns.T - half).argmax(1) for part in rows.split(kmeans.BLOCK)]).numpy()


def main() -> None:
    """Print time and NMI of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--k", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--noise", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of the planted clusters")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(
        f"vlm {vlm.__version__}, torch {torch.__version__}, faiss {faiss.__version__}, {args.threads} threads"
    )
    print(args)
    half, truth = planted(args.samples, args.k, args.dim, noise=args.noise, seed=args.seed)
    x = half.float().numpy()
    with tempfile.TemporaryDirectory() as name:
        features = write_folder(Path(name), half)
        runs: dict[str, Callable[[], np.ndarray]] = {
            "ours": lambda: ours(features, args.k, args.iterations),
            "ours, Lloyd alone": lambda: lloyd_alone(features, args.k, args.iterations),
            "faiss": lambda: faiss_defaults(x, args.k),
            "faiss, spherical": lambda: faiss_defaults(x, args.k, spherical=True, niter=args.iterations),
        }
        chosen = [label for label in runs if not args.only or label in args.only]
        for number in range(args.rounds):
            for label in chosen if number % 2 == 0 else reversed(chosen):
                wall, cpu = time.perf_counter(), time.process_time()
                centroids = runs[label]()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                nmi = mutual_information(truth, labels_of(x, centroids))
                seconds = f"{wall:7.1f} s, {cpu:7.1f} s of CPU"
                load = os.getloadavg()[0]
                print(f"{number + 1} {label:17} {seconds}, NMI {nmi:.4f} (load {load:.1f})", flush=True)


if __name__ == "__main__":
    main()
