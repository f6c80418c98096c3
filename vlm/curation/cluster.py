"""Virtual classes: k-means over features, then the nearest clusters of each sample beside its shard."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm.curation.checkpoint import begin, read_state, write_clusters, write_state
from vlm.curation.kmeans import Iteration, Passes, Settings, State, lloyd
from vlm.curation.labels import label_places, unlabelled, write_labels
from vlm.curation.report import write_report
from vlm.data.sidecar import check_name
from vlm.distributed import ControlGroup, Topology, naming_lost_ranks
from vlm.errors import ConfigError, DataError
from vlm.inference.features import FeatureSet

MOST_EMPTY = 0.01
"""The share of clusters without a sample above which clusters are refused."""


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """What `cluster_features` made."""

    settings: Settings
    history: tuple[Iteration, ...]
    num_samples: int
    """Without the broken ones."""
    places: tuple[Path, ...]
    """The labels of each shard."""
    report: Path


def cluster_features(
    path: str | Path,
    out: Path,
    settings: Settings,
    topology: Topology,
    *,
    name: str,
    labels_per_sample: int,
    device: str,
) -> Clusters:
    """Cluster a folder of features into the folder `out`; every rank calls it.

    What is computed is kept: the centroids after each iteration, and the labels of each shard.

    Args:
        name: the labels lie beside each shard as `<shard>.<name>.parquet`.
        labels_per_sample: nearest clusters that are written of each sample.

    Raises:
        ConfigError: a setting is out of range, or `out` is of other work.
        DataError: the features are incomplete or do not fit the shards, or too many clusters stay empty.
        LostRankError: another rank ended.
    """
    control = ControlGroup()
    with naming_lost_ranks(f"what is computed is kept in out={out}; type the same command again, it goes on"):
        features = control.first_rank_does(lambda: FeatureSet.open(path, key="features"))
        _check(features, settings, name=name, labels_per_sample=labels_per_sample)
        work = {
            **asdict(settings),
            "labels_per_sample": labels_per_sample,
            "name": name,
            "features": features.digest,
        }
        made_by = f"vlm cluster {hashlib.sha256(json.dumps(work).encode()).hexdigest()[:16]}"
        control.first_rank_does(lambda: begin(out, work))
        places = control.first_rank_does(lambda: label_places(features.manifest, name, out))
        control.first_rank_does(lambda: unlabelled(features.manifest, places, made_by=made_by))

        state = _clustered(features, settings, topology, control, out, work, device)
        _refuse_empty(state, settings.k)

        missing = control.first_rank_does(lambda: unlabelled(features.manifest, places, made_by=made_by))
        own = missing[topology.rank :: topology.world_size]
        rows = sum(features.manifest.shards[shard].rows for shard in own)
        with _bar("labels", rows, topology) as bar:
            write_labels(
                features,
                state.centroids,
                places,
                own,
                count=labels_per_sample,
                made_by=made_by,
                device=device,
                after_block=bar.update,
            )
        control.gather(None)  # until all have written theirs
        report = control.first_rank_does(lambda: _conclude(features, state, out, work, places))
    return Clusters(
        settings=settings,
        history=state.history,
        num_samples=_num_whole(features),
        places=tuple(places),
        report=report,
    )


def _num_whole(features: FeatureSet) -> int:
    return features.manifest.num_rows - (features.manifest.num_broken or 0)


def _check(features: FeatureSet, settings: Settings, *, name: str, labels_per_sample: int) -> None:
    check_name(name, key="name", folder=None)
    whole = _num_whole(features)
    if settings.k > whole:
        raise ConfigError(f"k={settings.k} is more than the {whole} samples that have features; lower it")
    if not 1 <= labels_per_sample <= settings.k:
        raise ConfigError(
            f"labels_per_sample={labels_per_sample} must be from 1 to k={settings.k}: a sample has no more "
            "nearest clusters"
        )


def _clustered(
    features: FeatureSet,
    settings: Settings,
    topology: Topology,
    control: ControlGroup,
    out: Path,
    work: dict[str, Any],
    device: str,
) -> State:
    """k-means from where it stands in `out`, to its end."""
    begun = control.first_rank_does(lambda: read_state(out))
    moves = settings.iterations + 1 - (len(begun.history) if begun else 0)
    done = begun is not None and begun.finished
    rows = 0 if done else moves * features.manifest.num_rows // topology.world_size
    with _bar("k-means", rows, topology) as bar:

        def keep(state: State) -> None:
            if topology.is_main:
                write_state(out, state, work)
            if state.history:
                last = state.history[-1]
                bar.set_postfix_str(
                    f"iteration {len(state.history) - 1}, cosine {last.objective:.4f}, {last.empty} empty"
                )

        passes = Passes(features, topology, device=device, after_block=bar.update)
        return lloyd(passes, settings, begun=begun, keep=keep)


def _refuse_empty(state: State, k: int) -> None:
    last = state.history[-1]
    if last.left_empty > MOST_EMPTY * k:
        raise DataError(
            f"{last.left_empty} of {k} clusters stay empty after {len(state.history) - 1} iterations, more "
            f"than {MOST_EMPTY:.0%} (imbalance {last.imbalance:.3g}): the features have too few directions, "
            "as from many equal pictures or a tower that tells few apart; lower k, or embed with another one"
        )


def _conclude(
    features: FeatureSet, state: State, out: Path, work: dict[str, Any], places: Sequence[Path]
) -> Path:
    write_clusters(out, state, work)
    return write_report(out, features, state.history, places, seed=work["seed"], k=work["k"])


@contextmanager
def _bar(what: str, total: int, topology: Topology) -> Iterator[Any]:
    """A bar of rank 0's samples."""
    shown = total > 0 and topology.is_main and sys.stderr.isatty()
    with tqdm(desc=what, total=total, unit="sample", unit_scale=True, leave=False, disable=not shown) as bar:
        yield bar
