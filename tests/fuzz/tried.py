"""Every case, and the world that they start from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from fuzz import checkpoints, configs, foreign, images, index, shards, texts, world
from fuzz.case import Case, in_folder
from fuzz.commands import start_run


def all_cases() -> Iterator[Case]:
    """In the order of the table."""
    for module in (shards, images, texts, index, checkpoints, foreign, configs):
        yield from module.cases()


def make_base(folder: Path) -> Path:
    """Write the world and train the run that the cases go on from, up to its third step of four."""
    world.write_inputs(folder)
    with in_folder(folder):
        start_run()
    shutil.rmtree(folder / "runs/done/checkpoints/step_00000004")
    return folder
