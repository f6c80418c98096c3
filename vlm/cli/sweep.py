"""`vlm sweep`: many checkpoints on many data sets, each question answered once."""

import os
import sys
from collections.abc import Mapping
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.device import check_batches, usable_device
from vlm.errors import ConfigError, VlmError
from vlm.settings import build, resolve

if TYPE_CHECKING:
    from vlm.evaluation.sweep import Candidates, Definition, Summary


class FailedCellsError(VlmError):
    """Some cells could not be computed; the others are."""

    of_all_ranks = True


@command("sweep")
def main(config: DictConfig) -> None:
    """Entry point of `vlm sweep`."""
    values = resolve(config)
    check_batches(values)
    from vlm.distributed import process_group
    from vlm.evaluation.sweep import Settings, find_candidates, sweep

    out = Path(values["out"])
    cache = Path(values["cache"] or out / "cache")
    open_clip = build(values["open_clip"], "open_clip")
    definitions = _definitions(values)
    settings = Settings(
        tasks=_listed(values, "tasks"),
        languages=_listed(values, "languages"),
        cache=cache,
        device=usable_device(values["device"]),
        batch_size=values["batch_size"],
        num_workers=values["num_workers"],
        bf16=values["bf16"],
        first=int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")),
    )

    def find() -> "Candidates":
        _require_writable(out, "out")
        _require_writable(cache, "cache")
        return find_candidates(
            values["checkpoints"], weights=values["weights"], open_clip=open_clip, imported=cache / "imported"
        )

    with process_group() as topology:
        try:
            summary = sweep(find, definitions, out, settings, topology)
        except KeyboardInterrupt:
            if topology.is_main:
                print(f"stopped; finished cells are in {out}, the same command goes on", file=sys.stderr)
            raise
        if topology.is_main:
            _tell(summary, out)


def _definitions(values: dict[str, Any]) -> "dict[str, Definition]":
    """The data sets by name, from `datasets` and `clip_benchmark`."""
    from vlm.evaluation import DataSet
    from vlm.evaluation.sweep import Definition

    nodes = dict(values["datasets"])
    for name, root in _folders(values["clip_benchmark"]).items():
        language = values["clip_benchmark"]["language"]
        nodes[name] = {"_target_": "vlm.evaluation.ClipBenchmarkData", "root": root, "language": language}
    if not nodes:
        raise ConfigError(
            "no data set is named; set datasets=[cifar10,...], or clip_benchmark.root='data/wds_{name}'"
        )
    found = {}
    if "_target_" in nodes:
        raise ConfigError(
            f"datasets: a file holds _target_={nodes['_target_']} without a name; write the name of the data "
            "set above it, and indent what follows"
        )
    for name, node in nodes.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError(
                f"datasets.{name} has no _target_; a file of datasets has names, and under each its data set"
            )
        built = build(node, f"datasets.{name}")
        if not isinstance(built, DataSet):
            raise ConfigError(f"datasets.{name}._target_={node.get('_target_')} makes no data set")
        found[str(name)] = Definition(node, built)
    return found


def _folders(asked: Mapping[str, Any]) -> dict[str, str]:
    """The folders in CLIP_benchmark's layout, by name; without names all that there are."""
    root, names = asked["root"], asked["names"]
    if root is None:
        if names:
            raise ConfigError("clip_benchmark.names needs clip_benchmark.root, such as 'data/wds_{name}'")
        return {}
    if "://" in root:
        raise ConfigError(
            f"clip_benchmark.root={root!r} is an address; download the data sets and name a folder"
        )
    before, found, after = root.partition("{name}")
    if not found:
        raise ConfigError(f"clip_benchmark.root={root!r} has no {{name}}, where the name of a data set goes")
    if names is None:
        folders = sorted(glob(f"{escape(before)}*{escape(after)}"))
        names = [
            folder[len(before) : len(folder) - len(after)] for folder in folders if os.path.isdir(folder)
        ]
        if not names:
            raise ConfigError(f"clip_benchmark.root={root!r}: there is no such folder")
    # CLIP_benchmark writes vtab/pets, and names the folder vtab-pets.
    return {name: f"{before}{name}{after}" for name in (name.replace("/", "-") for name in names)}


def _listed(values: Mapping[str, Any], key: str) -> list[str] | None:
    value = values[key]
    if value is None:
        return None
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _require_writable(folder: Path, key: str) -> None:
    """Whether a folder can be made or written to; nothing is made yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(f"{key}={folder}: {there} is no folder; name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: {there} cannot be written to; name another folder")


def _tell(summary: "Summary", out: Path) -> None:
    print(
        f"{len(summary.done)} cells are done, {len(summary.kept)} were before, {len(summary.failed)} failed\n"
        f"table: {out / 'results.csv'}\npage:  vlm report sweep={out}"
    )
    if summary.elsewhere:
        print(f"left to other processes of this sweep: {', '.join(summary.elsewhere)}")
    elif not (summary.done or summary.kept or summary.failed):
        print("nothing was asked: the checkpoints lack what the questions need, such as a text tower")
    for what, lost in (("data sets", summary.broken), ("checkpoints", summary.unreadable)):
        if lost:
            name, error = next(iter(lost.items()))
            raise FailedCellsError(
                f"{len(lost)} {what} cannot be read, the first is {name}: {error}; the others were asked"
            )
    if summary.failed:
        cell, error = next(iter(summary.failed.items()))
        raise FailedCellsError(
            f"{len(summary.failed)} cells failed, the first is {cell}: {error}; {out / 'failed'} has them all"
        )


if __name__ == "__main__":
    main()
