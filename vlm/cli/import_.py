"""`vlm import`: make a model of another project into a checkpoint of this one."""

from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve


@command("import")
def main(config: DictConfig) -> None:
    """Entry point of `vlm import`."""
    values = resolve(config)
    source, out = Path(values.pop("from")), Path(values.pop("out"))
    given = build(values, "")
    from vlm.inference.foreign import import_model

    print(import_model(source, out, given))
    print(f"{out} is a checkpoint; score it with: vlm evaluate run={out} suite=zero_shot")


if __name__ == "__main__":
    main()
