"""What of a configuration may differ at resume."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm.data import TrainSet
from vlm.errors import CheckpointError, ConfigError
from vlm.inference import (
    CONFIG,
    read_config,
    read_description,
)
from vlm.training.recipe import Run

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "plan",
    "run.name",
    "run.resume",
    "run.accept_changes",
    "resolved",
    "init_from",
    "resize_positions",
    "paths",
    "make_data",
    "objective.implementation",
    "data.num_workers",
    "data.max_broken_share",
    "data.remote",
    "data.cache",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.micro_batch_size",
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.log_every_n_steps",
    "trainer.hang_minutes",
    "checkpoint",
    "evaluation",
    "suite",
    "logger",
)
"""Keys, and all under them, that may differ at resume: they do not change what is computed."""

_DIGESTS = {"labels_sha256": "labels", "negatives_sha256": "negatives"}
"""Of a source's fingerprint, and the key that names what they are of."""

FIXED = ("model", "tokenizer", "data.preprocess", "objective.num_classes")
"""Keys that may never differ at resume."""


def check_unchanged(run: Run, start: Path, data: TrainSet) -> None:
    """Refuse to resume with another model, objective, schedule, order of samples or data set.

    What run.accept_changes names may change, except what the weights themselves depend on.
    """
    try:
        old, new = _fixed(read_config(start)), _fixed(resolved(run))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{start}/{CONFIG} is not the configuration of a run: {error!r}") from error
    changes = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys()}
    stored = read_description(start).data or {}
    for key, (before, now) in data.beside(stored).items():
        changes |= _of_source(key, before, now, known=changes)
    changes = {key: (before, now) for key, (before, now) in sorted(changes.items()) if before != now}
    refused = {key: change for key, change in changes.items() if not _under(key, run.accept_changes)}
    listing = "; ".join(f"{key}: was {before!r}, is {now!r}" for key, (before, now) in changes.items())
    if any(_under(key, FIXED) for key in changes):
        raise ConfigError(
            f"run.resume=true, but the configuration has changed, and the weights depend on it: {listing}"
        )
    if refused:
        keys = ",".join(refused)
        raise ConfigError(
            f"run.resume=true, but the configuration has changed: {listing}. Change it back, or confirm by "
            f"run.accept_changes=[{keys}]"
        )
    if changes:
        log.warning("going on with changes: %s", listing)


def resolved(run: Run) -> dict[str, Any]:
    """The configuration, and what follows from it and the ranks that there are."""
    return {**run.config, "resolved": {"num_groups": run.objective.num_groups}}


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change at resume, by key; data may move to another folder.

    Ranks may be more or fewer, so that for the objective it is not how many are in a group that counts.
    """
    data = config["paths"]["data"].rstrip("/") + "/"

    def relative(value: Any) -> Any:
        if isinstance(value, list):
            return [relative(item) for item in value]
        return value.removeprefix(data) if isinstance(value, str) else value

    fixed = {key: relative(value) for key, value in _flat(config).items() if not _under(key, MAY_CHANGE)}
    if "objective.group_size" in fixed:
        groups = config.get("resolved", {}).get("num_groups", 1)
        fixed["objective.group_size"] = "one group of all pairs"
        if groups > 1:
            pairs = fixed["data.global_batch_size"] // groups
            fixed["objective.group_size"] = f"{groups} groups of {pairs} pairs"
    return fixed


def _of_source(
    key: str, before: Any, now: dict[str, Any], *, known: Mapping[str, tuple[Any, Any]]
) -> dict[str, tuple[Any, Any]]:
    """What fingerprints say: other shards, and sidecars that were made again under the same name."""
    if not isinstance(before, Mapping):
        return {f"{key}.shards": (before, now)}
    old, new = ({name: v for name, v in side.items() if name not in _DIGESTS} for side in (before, now))
    found: dict[str, tuple[Any, Any]] = {f"{key}.shards": (old, new)}
    for digest, what in _DIGESTS.items():
        old_name, name = known.get(f"{key}.{what}", (None, None))
        if old_name == name and digest in before:
            was, is_ = (f"{name} of sha256 {str(side[digest])[:12]}" for side in (before, now))
            found[f"{key}.{what}"] = (was, is_)
    return found


def _under(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
