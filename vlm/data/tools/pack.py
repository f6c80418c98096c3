"""From a table of images and captions to shards.

The rows are cut into shards before anything is written, so that any number of processes write the same bytes,
and a run that was interrupted goes on with the shards that are missing. The folder `.pack` beside the shards
holds the plan and a record of each shard.
"""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from vlm.data.index import IndexNotWrittenError, write_sizes
from vlm.data.tools.columns import Columns, choose_columns
from vlm.data.tools.packed_shard import ShardRecord, ShardTask, Skipped, write_shard
from vlm.data.tools.plan import Plan, Planner
from vlm.data.tools.processes import number_of_workers, run_tasks
from vlm.data.tools.tables import Table, open_table
from vlm.errors import ConfigError, DataError
from vlm.files import is_full, remove_drafts, replacing

logger = logging.getLogger(__name__)

SKIPPED = "skipped.tsv"
_FORMAT = 1
_EXAMPLES = 3
# A worker of a run that was killed ends within moments, and holds the lock until then.
_LOCK_SECONDS = 10


class Packed(NamedTuple):
    """What lies in the folder at the end."""

    samples: int
    shards: int
    skipped: int
    new_samples: int
    """Those that an earlier run had not written."""
    captions: str
    """The value for `data.train.captions`."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Packs a table, or goes on where an earlier run of the same was interrupted.

    Args:
        input: a CSV, TSV, JSONL or Parquet file, or a folder of images with a txt or json beside each.
        out: folder of the shards.
        image: column of the images: paths, or bytes within a Parquet file. None: found out.
        caption: column or columns of the captions. None: found out.
        root: folder of relative image paths. None: that of the table.
        separator: of a text table. None: found out.
        max_samples: samples in a shard.
        max_mb: size of a shard in 10^6 bytes, roughly.
        verify: `header` looks at the first bytes of each image, `decode` decodes it.
        max_skipped: share of the rows that may lack a readable image or a caption.
        workers: processes. None: one for each core.

    Raises:
        ConfigError: a number is out of range.
    """

    input: str
    out: str
    image: str | None
    caption: str | Sequence[str] | None
    root: str | None
    separator: str | None
    max_samples: int
    max_mb: int
    verify: Literal["header", "decode"]
    max_skipped: float
    workers: int | None

    def __post_init__(self) -> None:
        number_of_workers(self.workers)
        for name in ("max_samples", "max_mb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.max_skipped < 1:
            raise ConfigError(f"max_skipped={self.max_skipped} must be from 0 to below 1")

    def run(self) -> Packed:
        """Write the shards that are missing.

        Raises:
            DataError: the table, its columns or too many of its images cannot be read, `out` holds something
                else, or it cannot be written to. Shards that are complete stay, and the next run goes on.
        """
        table = open_table(Path(self.input), separator=self.separator)
        root = Path(self.root or (table.path if table.path.is_dir() else table.path.parent))
        columns = choose_columns(table, image=self.image, captions=self.caption, root=root)
        logger.info(
            "%s: %s, columns %s\npacking image=%s caption=%s (where this is wrong, type other columns)",
            *(table.path, table.description, ", ".join(table.columns), columns.image),
            columns.captions[0] if len(columns.captions) == 1 else f"[{','.join(columns.captions)}]",
        )
        out = Path(self.out)
        with _locked(out):
            plan = self._plan(table, columns, root=root, out=out)
            tasks = self._tasks(table, columns, plan, root=root, out=out)
            records, new_samples = self._write(tasks, plan, out)
        samples = sum(record.samples for record in records)
        skipped = sum(len(record.skipped) for record in records)
        return Packed(samples, len(records), skipped, new_samples, columns.fields)

    def _plan(self, table: Table, columns: Columns, *, root: Path, out: Path) -> Plan:
        """The plan of the run that goes on, or a new one."""
        path = _hidden(out) / "plan.json"
        settings: dict[str, Any] = {
            "format": _FORMAT,
            "content": table.fingerprint(),
            "image": columns.image,
            "caption": list(columns.captions),
            "root": os.path.abspath(root),
            "max_samples": self.max_samples,
            "max_mb": self.max_mb,
            "verify": self.verify,
        }
        if path.exists():
            return Plan.read(path, settings, out=out)
        if found := sorted(name for name in os.listdir(out) if not name.startswith(".")):
            raise DataError(f"out={out} has {found[0]} in it; name a new folder, or remove what is there")
        planner = Planner(root=root, max_samples=self.max_samples, max_mb=self.max_mb)
        plan = planner.plan(table.places(columns.image))
        if len(planner.missing) > self.max_skipped * plan.rows:
            examples = ", ".join(os.path.join(root, path) for path in planner.missing[:_EXAMPLES])
            raise DataError(
                f"{len(planner.missing)} of {plan.rows} images are missing, as {examples}; relative paths "
                f"begin at root={root}. Correct root= or image={columns.image}, or raise "
                f"max_skipped={self.max_skipped}"
            )
        if (free := shutil.disk_usage(out).free) < planner.total_size:
            needed = planner.total_size / 1e9
            logger.warning("about %.1f GB are needed, %.1f GB are free at %s", needed, free / 1e9, out)
        plan.write(path, settings)
        return plan

    def _tasks(
        self, table: Table, columns: Columns, plan: Plan, *, root: Path, out: Path
    ) -> Iterator[ShardTask]:
        for i, (number, place, count) in enumerate(plan.spans()):
            yield ShardTask(
                table=table.part(number=number, place=place, count=count),
                columns=columns,
                root=root,
                decode=self.verify == "decode",
                shard=out / f"{i:05d}.tar",
                record=_hidden(out) / f"{i:05d}.json",
                rows=count,
            )

    def _write(
        self, tasks: Iterator[ShardTask], plan: Plan, out: Path
    ) -> tuple[Collection[ShardRecord], int]:
        """The records of all shards, and how many samples are new."""
        records: dict[str, ShardRecord] = {}
        missing: list[ShardTask] = []
        for task in tasks:
            record = ShardRecord.read(task.record, shard=task.shard)
            if record is None:
                missing.append(task)
            else:
                records[task.shard.name] = record
        kept = sum(record.samples for record in records.values())
        try:
            self._write_missing(missing, records, plan, out)
            _write_skipped(out, records)
            write_sizes(out, {name: record.samples for name, record in records.items()})
        except (OSError, IndexNotWrittenError) as error:
            advice = "make room, then run" if is_full(error) else "run"
            raise DataError(
                f"packing into {out} stopped: {error}. {len(records)} of {len(plan.starts)} shards are "
                f"complete and stay; {advice} the same command again: it goes on with the others"
            ) from error
        return records.values(), sum(record.samples for record in records.values()) - kept

    def _write_missing(
        self, missing: list[ShardTask], records: dict[str, ShardRecord], plan: Plan, out: Path
    ) -> None:
        """Write shards, and add their records as they are done."""
        there = plan.rows - sum(task.rows for task in missing)
        skipped = sum(len(record.skipped) for record in records.values())
        workers = min(number_of_workers(self.workers), max(1, len(missing)))
        with tqdm(total=plan.rows, initial=there, desc="packing", unit="image", disable=None) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            with closing(run_tasks(write_shard, missing, num_workers=workers, advance=advance)) as done:
                for name, record in done:
                    records[name] = record
                    skipped += len(record.skipped)
                    if skipped > self.max_skipped * plan.rows:
                        self._refuse(records, plan, out)

    def _refuse(self, records: dict[str, ShardRecord], plan: Plan, out: Path) -> None:
        skipped = _write_skipped(out, records)
        examples = "; ".join(f"row {row} ({image}): {reason}" for row, image, reason in skipped[:_EXAMPLES])
        raise DataError(
            f"{len(skipped)} of {plan.rows} rows cannot be packed, as {examples}; all of them are named in "
            f"{out / SKIPPED}. Raise max_skipped={self.max_skipped} to go on without them"
        )


def _hidden(out: Path) -> Path:
    return out / ".pack"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder alone, and clear it of what a run that was killed left unfinished."""
    try:
        _hidden(out).mkdir(parents=True, exist_ok=True)
        with FileLock(_hidden(out) / "lock", timeout=_LOCK_SECONDS):
            _remove_drafts(out)
            try:
                yield
            finally:
                _remove_drafts(out)
    except Timeout:
        raise DataError(f"another process is packing into out={out}; wait for it, or name another") from None
    except OSError as error:
        message = f"packing into out={out} stopped: {error}; run the same command again to go on"
        raise DataError(message) from error


def _remove_drafts(out: Path) -> None:
    remove_drafts(out)
    remove_drafts(_hidden(out))


def _write_skipped(out: Path, records: dict[str, ShardRecord]) -> list[Skipped]:
    """Name the rows of which no sample was made, in their order."""
    skipped = sorted(row for record in records.values() for row in record.skipped)
    if skipped:
        lines = ["row\timage\treason", *("\t".join(map(_cell, row)) for row in skipped)]
        with replacing(out / SKIPPED) as draft:
            draft.write_text("\n".join(lines) + "\n", "utf-8", "backslashreplace")
    return skipped


def _cell(value: object) -> str:
    return " ".join(str(value).split())
