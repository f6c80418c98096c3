"""Class centres in a checkpoint: a file for the rows of each rank, read by any number of ranks."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlm.errors import CheckpointError
from vlm.models import ClassCentres

# A network disk shows a listing for so long at most before it asks again.
_PATIENCE_S = 90.0
_NAME = re.compile(r"centres_(\d+)_(\d+)\.safetensors")


def save_centres(folder: Path, centres: ClassCentres) -> None:
    """Write this rank's rows, weights and moments, as `centres_<first>_<one past the last>.safetensors`.

    Raises:
        CheckpointError: they cannot be written.
    """
    name = f"centres_{centres.rows.start:012d}_{centres.rows.stop:012d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.cpu() for key, value in centres.state().items()}, folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / name} cannot be written: {error}; earlier checkpoints are whole: make room, then go "
            "on with run.resume=true"
        ) from error


def wait_until_whole(folder: Path, num_classes: int) -> None:
    """Wait until the files that all ranks have written can be seen from here.

    Raises:
        CheckpointError: rows are in no file, and a network disk would have shown it by now.
    """
    until = time.monotonic() + _PATIENCE_S
    while missing := _first_gap(folder, num_classes):
        if time.monotonic() > until:
            raise CheckpointError(
                f"the class centres {missing.start:,} to {missing.stop - 1:,} that another rank wrote into "
                f"{folder} cannot be seen by the first; earlier checkpoints are whole: put paths.runs on a "
                "disk that all nodes share"
            )
        time.sleep(0.5)


def _first_gap(folder: Path, num_classes: int) -> range:
    end = 0
    for _, rows in _files(folder):
        if rows.start > end:
            return range(end, rows.start)
        end = max(end, rows.stop)
    return range(end, num_classes)


def load_centres(checkpoint: Path, centres: ClassCentres) -> None:
    """Read this rank's rows, whichever ranks wrote them; no other rows are read.

    Raises:
        CheckpointError: rows are missing, or of other centres.
    """
    try:
        centres.load(_pieces(checkpoint))
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"the class centres of {checkpoint} are damaged or others: {error}") from error


def _pieces(checkpoint: Path) -> Iterator[tuple[range, Mapping[str, Any]]]:
    for path, rows in _files(checkpoint):
        with safe_open(path, framework="pt") as file:
            yield rows, {name: file.get_slice(name) for name in ClassCentres.STATE}


def _files(folder: Path) -> Iterator[tuple[Path, range]]:
    """The files that are there, in the order of their rows, and these."""
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            yield path, range(int(match[1]), int(match[2]))
