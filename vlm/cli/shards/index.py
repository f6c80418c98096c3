"""`vlm shards index`: count the samples of shards and note where each begins."""

from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.errors import ConfigError
from vlm.settings import resolve


@command("shards_index")
def main(config: DictConfig) -> None:
    """Entry point of `vlm shards index`."""
    patterns = resolve(config)["shards"]
    several = patterns if isinstance(patterns, list) else [patterns]
    if not all(isinstance(pattern, str) for pattern in several):
        raise ConfigError(f"shards={patterns!r} has to be a pattern or a list of patterns")
    from vlm.data import open_shards
    from vlm.data.index import index_shards

    shards = open_shards(patterns, key="shards")
    places = index_shards(shards.urls)
    sizes = open_shards(patterns, key="shards")  # a wrong count was corrected
    print(f"{sizes.num_samples} samples in {len(sizes.urls)} shards")
    print("\n".join(f"index: {_relative(Path(folder))}" for folder in places))


def _relative(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
