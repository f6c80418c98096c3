"""Class centres in a checkpoint: a file for the rows of each rank, read by any number of ranks."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlm.errors import CheckpointError
from vlm.models import ClassCentres

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
    for path in sorted(checkpoint.iterdir()):
        if match := _NAME.fullmatch(path.name):
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_slice(name) for name in ClassCentres.STATE}
                yield range(int(match[1]), int(match[2])), state
