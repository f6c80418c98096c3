"""`train`: compose, validate, build, call."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.errors import ConfigError
from vlm.settings import build, build_evaluators, build_loggers, resolve

if TYPE_CHECKING:
    from vlm.training import Run

COMPONENTS = (
    "make_data",
    "data",
    "tokenizer",
    "objective",
    "optimizer",
    "schedule",
    "trainer",
    "checkpoint",
    "evaluation",
)


_LONGEST_NAME = 200
"""Bytes; file systems take 255, and something may be put before or behind a name."""


@command("train")
def main(config: DictConfig) -> None:
    """Entry point of the command `train`."""
    values = resolve(config)
    if values["plan"]:
        from vlm.training import plan

        print(plan(run_from(values)))
        return
    folder = train_from(values)
    from vlm.distributed import is_main_process  # imports torch

    if is_main_process():
        suite = " suite=vision" if values["model"]["text"] is None else ""
        print(f"{folder} is trained; score it with: vlm evaluate run={folder}{suite}")


def train_from(values: dict[str, Any]) -> Path:
    """Build every component of a resolved configuration, then train. Returns the run's folder."""
    # Towers and Lightning take seconds to import: `train --help` and a misspelt key should not wait for them.
    from vlm.training import train

    return train(run_from(values))


def run_from(values: dict[str, Any]) -> "Run":
    """Build every component of a resolved configuration."""
    from vlm.models import ModelSpec
    from vlm.training import Run

    return Run(
        folder=Path(values["paths"]["runs"]) / _name(values["run"]["name"]),
        resume=values["run"]["resume"],
        accept_changes=values["run"]["accept_changes"],
        seed=values["run"]["seed"],
        init_from=values["init_from"],
        resize_positions=values["resize_positions"],
        freeze=values["freeze"],
        model=ModelSpec.from_mapping(values["model"], key="model"),
        evaluators=build_evaluators(values["suite"]),
        loggers=build_loggers(values["logger"]),
        config=values,
        **{name: build(values[name], name) for name in COMPONENTS},
    )


def _name(name: str) -> str:
    """`run.name`, once it is known to be a place below `paths.runs`."""
    parts = name.split("/")
    usable = all(part not in ("", ".", "..") and len(part.encode()) <= _LONGEST_NAME for part in parts)
    if not usable or not name.isprintable():
        raise ConfigError(
            f"run.name={name[:_LONGEST_NAME]!r} has to be the name of a folder below paths.runs"
        )
    return name


if __name__ == "__main__":
    main()
