import json
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from gloo import run_gloo
from small_features import opened, planted, write_folder
from tiny import write_tiny_shards

from vlm.curation import cluster
from vlm.curation.checkpoint import read_state
from vlm.curation.cluster import Clusters, cluster_features
from vlm.curation.kmeans import Passes, Settings
from vlm.data.labels import Origin
from vlm.data.sidecar import read_footer
from vlm.distributed import Topology
from vlm.errors import ConfigError, DataError, LostRankError, VlmError

SIZES = (5, 5, 5, 5, 3)


def place(folder: Path, *, k: int = 4, broken: tuple[int, ...] = (7,)) -> torch.Tensor:
    """Real shards of 23 pictures and features that somebody made of them."""
    write_tiny_shards(folder / "shards", num_samples=23)
    features, _ = planted(23, k, 8, noise=0.3)
    urls = [f"{folder}/shards/{number:05d}.tar" for number in range(5)]
    write_folder(folder / "features", features, SIZES, broken=broken, urls=urls)
    return features


def run(folder: Path, **changes: Any) -> Clusters:
    values: dict[str, Any] = {
        "k": 4,
        "iterations": 8,
        "seed": 0,
        "name": "clusters",
        "labels_per_sample": 3,
        "out": "out",
    }
    values |= changes
    return cluster_features(
        folder / "features",
        folder / values["out"],
        Settings(k=values["k"], iterations=values["iterations"], seed=values["seed"]),
        Topology.current(),
        name=values["name"],
        labels_per_sample=values["labels_per_sample"],
        device="cpu",
    )


def labels_in(folder: Path, name: str = "clusters") -> list[list[int]]:
    tables = [pq.read_table(path) for path in sorted(folder.glob(f"*.{name}.parquet"))]
    return [labels for table in tables for labels in table["label"].to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    """What decides anything: centroids, the record of iterations, labels."""
    found = [folder / "out" / "centroids.safetensors", folder / "out" / "clusters.json"]
    found += sorted(folder.glob("shards/*.clusters.parquet"))
    return {path.name: path.read_bytes() for path in found}


def test_the_nearest_clusters_lie_beside_the_shards(tmp_path: Path) -> None:
    features = place(tmp_path)
    clusters = run(tmp_path)
    state = read_state(tmp_path / "out")
    assert state is not None
    order = (features.float() @ state.centroids.T).argsort(dim=1, descending=True)[:, :3].tolist()
    order[7] = []
    assert labels_in(tmp_path / "shards") == order
    rows, said = read_footer(str(clusters.places[4]))
    assert (rows, Origin.of(said).num_classes) == (3, 4)
    assert clusters.num_samples == 22
    content = json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert content["k"] == 4
    assert content["history"][-1]["empty"] == 0
    assert content["features"] == opened(tmp_path / "features").digest


def test_the_report_shows_clusters(tmp_path: Path) -> None:
    place(tmp_path)
    page = run(tmp_path).report.read_text()
    assert len(re.findall(r'<img src="data:image/webp;base64,', page)) == 4
    assert "22 in 5 shards, 1 broken" in page
    assert page.count("<svg") == 2
    assert "http" not in page
    assert (tmp_path / "out" / "clusters.png").read_bytes().startswith(b"\x89PNG")


def test_folders_that_cannot_be_written_have_their_labels_among_the_clusters(tmp_path: Path) -> None:
    place(tmp_path)
    run(tmp_path)
    beside = labels_in(tmp_path / "shards")
    for path in (tmp_path / "shards").glob("*.clusters.parquet"):
        path.unlink()
    (tmp_path / "shards").chmod(0o555)
    try:
        run(tmp_path)
    finally:
        (tmp_path / "shards").chmod(0o755)
    assert labels_in(tmp_path / "out") == beside
    assert labels_in(tmp_path / "shards") == []


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", ["write_state", "write_labels"])
def test_what_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place(tmp_path / "whole")
    place(tmp_path / "cut")
    run(tmp_path / "whole")
    known = getattr(cluster, moment)
    calls = 0

    def dies(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if moment == "write_labels":
            known(args[0], args[1], args[2], args[3][:2], **kwargs)
            raise KilledError
        known(*args, **kwargs)
        if calls == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(cluster, moment, dies)
        with pytest.raises(KilledError):
            run(tmp_path / "cut")
    state = read_state(tmp_path / "cut" / "out")
    assert state is not None
    assert state.finished == (moment == "write_labels")
    assert moment == "write_labels" or len(state.history) == 2
    labels = sorted(tmp_path.glob("cut/shards/*.clusters.parquet"))
    assert len(labels) == (2 if moment == "write_labels" else 0)
    written = [path.stat().st_mtime_ns for path in labels]
    run(tmp_path / "cut")
    assert [path.stat().st_mtime_ns for path in labels] == written  # not computed again
    whole = read_state(tmp_path / "whole" / "out")
    state = read_state(tmp_path / "cut" / "out")
    assert whole is not None
    assert state is not None
    assert torch.equal(whole.centroids, state.centroids)
    assert whole.history == state.history
    assert labels_in(tmp_path / "whole" / "shards") == labels_in(tmp_path / "cut" / "shards")


def on_ranks(folder: str) -> dict[str, bytes]:
    run(Path(folder))
    return contents(Path(folder))


def test_several_ranks_write_what_one_writes(tmp_path: Path) -> None:
    place(tmp_path / "data")
    alone = on_ranks(str(tmp_path / "data"))
    assert len(alone) == 7
    for path in (
        *(tmp_path / "data" / "out").iterdir(),
        *(tmp_path / "data").glob("shards/*.clusters.parquet"),
    ):
        path.unlink()
    (tmp_path / "ranks").mkdir()
    assert run_gloo(on_ranks, 2, tmp_path / "ranks", str(tmp_path / "data")) == [alone] * 2


def rank_of_two(rank: int, folder: str) -> None:
    """Rank 1 dies in its second pass over the samples; rank 0 keeps the message that it ends with."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    known, passes = Passes.run, 0

    def run_pass(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if rank == 1 and passes == 2:
            os._exit(9)
        return known(*args, **kwargs)

    Passes.run = run_pass  # type: ignore[method-assign]
    try:
        run(Path(folder))
    except LostRankError as error:
        Path(folder, "message").write_text(str(error))
    os._exit(0)


def test_a_dead_rank_is_named_and_its_iterations_are_kept(tmp_path: Path) -> None:
    place(tmp_path, k=10)
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=rank_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 9]
    message = (tmp_path / "message").read_text()
    assert message.startswith("another rank ended, or cannot be reached")
    assert message.endswith("type the same command again, it goes on")
    state = read_state(tmp_path / "out")
    assert state is not None
    assert len(state.history) == 1
    run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": 23}, ConfigError, r"k=23 is more than the 22 samples that have features"),
        ({"seed": -1}, ConfigError, r"seed=-1 must not be negative"),
        ({"k": 0}, ConfigError, r"k=0 must be at least 1"),
        ({"labels_per_sample": 5}, ConfigError, r"labels_per_sample=5 must be from 1 to k=4"),
        ({"name": "index"}, ConfigError, r"name='index'"),
        ({"name": "a/b"}, ConfigError, r"name='a/b'"),
        ({"out": "features"}, ConfigError, r"holds no clusters; name a new folder"),
    ],
)
def test_a_wrong_value_is_one_message(
    tmp_path: Path, changes: dict[str, Any], error: type[VlmError], message: str
) -> None:
    place(tmp_path)
    with pytest.raises(error, match=message):
        run(tmp_path, **changes)


def test_other_settings_or_features_do_not_go_on(tmp_path: Path) -> None:
    place(tmp_path)
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"was begun with seed=0 \(asked: 1\)"):
        run(tmp_path, seed=1)
    with pytest.raises(ConfigError, match=r"00000\.clusters\.parquet holds labels of other clusters"):
        run(tmp_path, seed=1, out="other")
    manifest = tmp_path / "features" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("planted", "elsewhere"))
    with pytest.raises(ConfigError, match=r"was begun with features="):
        run(tmp_path)


def test_features_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    place(tmp_path)
    file = tmp_path / "features" / "00001.safetensors"
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=r"features=.* is incomplete: 1 of 5 shards are missing"):
        run(tmp_path)
    file.write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"00001\.safetensors cannot be read"):
        run(tmp_path)
    other = write_folder(tmp_path / "other", torch.zeros(5, 3, dtype=torch.float16), (5,))
    file.write_bytes((other / "00000.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"holds F16 \[5, 3\], manifest\.json beside it says F16 \[5, 8\]"):
        run(tmp_path)
    with pytest.raises(DataError, match=r"has no manifest\.json; name a folder that `vlm embed` wrote"):
        cluster_features(
            tmp_path, tmp_path / "out", Settings(k=1, iterations=1, seed=0), Topology.current(),
            name="x", labels_per_sample=1, device="cpu",
        )  # fmt: skip


def test_shards_that_changed_since_are_refused(tmp_path: Path) -> None:
    place(tmp_path)
    sizes = tmp_path / "shards" / "sizes.json"
    sizes.write_text(json.dumps(json.loads(sizes.read_text()) | {"00002.tar": 6}))
    with pytest.raises(DataError, match=r"00002\.tar has 6 samples, its features are of 5"):
        run(tmp_path)


def test_too_many_empty_clusters_fail_and_write_no_labels(tmp_path: Path) -> None:
    write_folder(tmp_path / "features", planted(2, 2, 8, noise=0.0)[0].repeat(20, 1), (40,))
    with pytest.raises(DataError, match=r"8 of 10 clusters stay empty after 8 iterations, more than 1%"):
        run(tmp_path, k=10)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    place(tmp_path)
    run(tmp_path)
    path = tmp_path / "out" / "centroids.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"centroids\.safetensors cannot be read"):
        run(tmp_path)
