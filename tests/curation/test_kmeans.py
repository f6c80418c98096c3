from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_gloo
from small_features import opened, planted, write_folder

from vlm.curation import kmeans
from vlm.curation.kmeans import Passes, Settings, State, Sums, lloyd
from vlm.distributed import Topology

SIZES = (190, 10, 1, 399)


def clustered(folder: Path, settings: Settings, *, block: int = 32) -> State:
    kmeans.BLOCK, known = block, kmeans.BLOCK
    try:
        passes = Passes(opened(folder), Topology.current(), device="cpu", after_block=lambda rows: None)
        return lloyd(passes, settings, begun=None, keep=lambda state: None)
    finally:
        kmeans.BLOCK = known


def labels_by(state: State, features: torch.Tensor) -> np.ndarray:
    return kmeans.nearest(features.float(), state.centroids, count=1)[1][:, 0].numpy()


def found_each(labels: np.ndarray, truth: np.ndarray) -> bool:
    """Whether each planted cluster is one found cluster."""
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(truth.tolist()))


def test_planted_clusters_are_found_and_lloyd_alone_does_not_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, truth = planted(600, 20, 32, noise=0.5)
    folder = write_folder(tmp_path / "f", features, SIZES)
    settings = Settings(k=20, iterations=20, seed=0)
    assert found_each(labels_by(clustered(folder, settings), features), truth)
    monkeypatch.setattr(kmeans, "_RELOCATE_EVERY", 1000)
    assert not found_each(labels_by(clustered(folder, settings), features), truth)


def test_an_iteration_is_that_of_a_slow_reference(tmp_path: Path) -> None:
    features, _ = planted(600, 5, 8, noise=1.0)
    folder = write_folder(tmp_path / "f", features, SIZES, broken=[0, 191, 599])
    passes = Passes(opened(folder), Topology.current(), device="cpu", after_block=lambda rows: None)
    centroids = torch.nn.functional.normalize(
        torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    found = passes.run(centroids, margins=True)
    sums, counts, margins = np.zeros((7, 8)), np.zeros(7), np.zeros(7)
    for row in set(range(600)) - {0, 191, 599}:
        x = features[row].double().numpy()
        cosines = centroids.double().numpy() @ x
        best = int(cosines.argmax())
        sums[best] += x
        counts[best] += 1
        margins[best] += cosines[best] - np.sort(cosines)[-2]
    assert np.array_equal(found.vectors.numpy(), sums)  # exact, in whatever order they are added
    assert np.array_equal(found.counts.numpy(), counts)
    assert found.margins is not None
    np.testing.assert_allclose(found.margins.numpy(), margins, atol=1e-4)
    moved = kmeans._unit(found.vectors, centroids, found.counts)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(moved[counts > 0].numpy(), expected[counts > 0], atol=1e-6)


def test_tiles_of_centroids_find_what_sorting_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_TILE", 5)
    generator = torch.Generator().manual_seed(0)
    rows, centroids = torch.randn(40, 6, generator=generator), torch.randn(17, 6, generator=generator)
    values, order = (rows @ centroids.T).sort(dim=1, descending=True)
    for count in (1, 2, 8, 17):
        found, labels = kmeans.nearest(rows, centroids, count=count)
        assert torch.equal(labels, order[:, :count])
        torch.testing.assert_close(found, values[:, :count])


def on_ranks(folder: str) -> tuple[torch.Tensor, str]:
    state = clustered(Path(folder), Settings(k=30, iterations=9, seed=3))
    return state.centroids, state.history_text()


def test_clusters_are_the_same_on_any_number_of_ranks_to_the_last_bit(tmp_path: Path) -> None:
    features, _ = planted(600, 20, 16, noise=1.0)
    folder = write_folder(tmp_path / "f", features, SIZES, broken=[5, 300])
    alone, history = on_ranks(str(folder))
    for world_size in (2, 4):
        for centroids, told in run_gloo(on_ranks, world_size, tmp_path, str(folder)):
            assert torch.equal(centroids, alone)
            assert told == history


def test_the_mean_cosine_never_falls_without_repairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_RELOCATE_EVERY", 1000)
    features, _ = planted(600, 20, 16, noise=2.0)
    state = clustered(write_folder(tmp_path / "f", features, SIZES), Settings(k=10, iterations=8, seed=0))
    objectives = [iteration.objective for iteration in state.history]
    assert all(b >= a - 1e-6 for a, b in pairwise(objectives))
    assert objectives[-1] > objectives[0]


def test_empty_clusters_get_halves_of_the_largest() -> None:
    pairs, left = kmeans._repairs(torch.tensor([0, 9, 4, 0, 0]))
    assert (pairs, left) == ([(0, 1), (3, 1), (4, 0)], 0)  # 9 becomes 4 and 5, and 5 becomes 2 and 3
    pairs, left = kmeans._repairs(torch.tensor([0, 1, 2, 0]))
    assert (pairs, left) == ([(0, 2)], 1)


def test_split_centroids_share_the_samples_of_the_one(tmp_path: Path) -> None:
    features, _ = planted(200, 1, 16, noise=1.0)
    centre = torch.nn.functional.normalize(features.float().mean(0, keepdim=True), dim=1)
    centroids = torch.cat([-centre, centre])
    both = kmeans._split(centroids, [(0, 1)], np.random.default_rng(0))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    counts = torch.bincount(kmeans.nearest(features.float(), both, count=1)[1][:, 0], minlength=2)
    assert counts.min() > 40


@pytest.mark.parametrize("block", [kmeans.BLOCK, 1])
def test_of_two_centroids_in_one_cluster_one_goes_where_one_holds_two(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters at 0 (twice), at 1, and at 2 and 3 together."""
    monkeypatch.setattr(kmeans, "BLOCK", block)
    axes = torch.eye(8)
    centroids = torch.stack([axes[0] + 0.05 * axes[4], axes[0] - 0.05 * axes[4], axes[1], axes[2] + axes[3]])
    centroids = torch.nn.functional.normalize(centroids, dim=1)
    counts = torch.tensor([50, 50, 100, 200])
    vectors = centroids.double() * torch.tensor([[49.0], [49], [98], [140]])
    margins = torch.tensor([0.5, 0.6, 90.0, 130.0], dtype=torch.float64)
    assert kmeans._relocations(Sums(vectors, counts, margins), centroids) == [(0, 3)]


def test_equal_samples_leave_clusters_empty(tmp_path: Path) -> None:
    features = planted(4, 4, 8, noise=0.0)[0].repeat(50, 1)
    state = clustered(write_folder(tmp_path / "f", features, (200,)), Settings(k=8, iterations=5, seed=0))
    assert state.history[-1].left_empty >= 4
    assert state.history[-1].imbalance >= 2
