"""`train`: compose, validate, build, call."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, build_evaluators, build_loggers, resolve

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


@command("train")
def main(config: DictConfig) -> None:
    """Entry point of the command `train`."""
    folder = train_from(resolve(config))
    print(f"{folder} is trained; score it with: vlm evaluate run={folder}")


def train_from(values: dict[str, Any]) -> Path:
    """Build every component of a resolved configuration, then train. Returns the run's folder."""
    # Towers and Lightning take seconds to import: `train --help` and a misspelt key should not wait for them.
    from vlm.models import ModelSpec
    from vlm.training import Run, train

    return train(
        Run(
            folder=Path(values["paths"]["runs"]) / values["run"]["name"],
            resume=values["run"]["resume"],
            accept_changes=values["run"]["accept_changes"],
            seed=values["run"]["seed"],
            init_from=values["init_from"],
            resize_positions=values["resize_positions"],
            model=ModelSpec.from_mapping(values["model"], key="model"),
            evaluators=build_evaluators(values["suite"]),
            loggers=build_loggers(values["logger"]),
            config=values,
            **{name: build(values[name], name) for name in COMPONENTS},
        )
    )


if __name__ == "__main__":
    main()
