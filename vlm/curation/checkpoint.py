"""A folder of clusters: what it holds while k-means runs, and at the end.

| file | what |
|---|---|
| `centroids.safetensors` | `centroids`, fp32 [k, dim], of unit length; replaced after each iteration |
| `clusters.json` | settings, digest of the features, iterations, sizes; written when k-means has ended |
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlm.curation.kmeans import State, as_history
from vlm.errors import ConfigError, DataError
from vlm.files import remove_drafts, replacing, write_json, writing

CENTROIDS = "centroids.safetensors"
CLUSTERS = "clusters.json"
_STATE = (
    "state"  # one key alone: safetensors writes several in any order, and equal work should give equal bytes
)


def begin(out: Path, work: Mapping[str, Any]) -> None:
    """Make the folder, or see that it is of the same work.

    Args:
        work: what decides the clusters, by configuration key.

    Raises:
        ConfigError: the folder is of other work, or of something else.
        DataError: what it holds cannot be read.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_drafts(out)
    if not (out / CENTROIDS).is_file():
        if any(out.iterdir()):
            raise ConfigError(f"out={out} is not empty and holds no clusters; name a new folder")
        return
    begun = _metadata(out)["work"]
    for name, asked in work.items():
        if begun.get(name) != asked:
            raise ConfigError(
                f"out={out} was begun with {name}={begun.get(name)} (asked: {asked}); ask for the same, or "
                "name a new folder"
            )


def write_state(out: Path, state: State, work: Mapping[str, Any]) -> None:
    """Keep where k-means stands, whole or not at all."""
    content = {"work": dict(work), "history": state.history_text(), "finished": state.finished}
    path = out / CENTROIDS
    with writing(path, then="make room and type the command again: it goes on"), replacing(path) as draft:
        save_file({"centroids": state.centroids.contiguous()}, draft, metadata={_STATE: json.dumps(content)})


def read_state(out: Path) -> State | None:
    """Where k-means stands; None where it has not begun.

    Raises:
        DataError: the file cannot be read.
    """
    if not (out / CENTROIDS).is_file():
        return None
    said = _metadata(out)
    with safe_open(out / CENTROIDS, framework="pt") as file:
        centroids = file.get_tensor("centroids")
    return State(centroids=centroids, history=as_history(said["history"]), finished=said["finished"])


def write_clusters(out: Path, state: State, work: Mapping[str, Any]) -> None:
    """Write `clusters.json`."""
    content = {**work, "iterations_run": len(state.history) - 1}
    content["history"] = [asdict(iteration) for iteration in state.history]
    write_json(out / CLUSTERS, content, indent=1)


def _metadata(out: Path) -> dict[str, Any]:
    path = out / CENTROIDS
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = json.loads(file.metadata()[_STATE])
        if not {"work", "history", "finished"} <= content.keys():
            raise ValueError(f"{_STATE} lacks a part")
        return content
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete {out} and cluster again") from error
