"""`vlm shards preview`: a sheet of images with their captions."""

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve


@command("shards_preview")
def main(config: DictConfig) -> None:
    """Entry point of `vlm shards preview`."""
    preview = build(resolve(config), "")
    count = preview.run()
    print(f"{count} samples are shown in {preview.out}")
