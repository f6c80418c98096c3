"""`vlm shards toy`: write the toy scenes."""

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve


@command("shards_toy")
def main(config: DictConfig) -> None:
    """Entry point of `vlm shards toy`."""
    values = resolve(config)
    del values["paths"]
    build(values, "").make()
    print(f"toy scenes are in {values['out']}; train on them with: train experiment=toy")
