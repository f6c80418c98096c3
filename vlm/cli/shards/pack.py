"""`vlm shards pack`: a table or a folder of images with captions to shards."""

import time

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve


@command("shards_pack")
def main(config: DictConfig) -> None:
    """Entry point of `vlm shards pack`."""
    pack = build(resolve(config), "")
    start = time.perf_counter()
    packed = pack.run()
    seconds = time.perf_counter() - start
    rate = f" ({packed.new_samples / seconds:.0f} images/s)" if packed.new_samples else " (all were there)"
    print(f"{packed.samples} samples in {packed.shards} shards in {pack.out}{rate}")
    if packed.skipped:
        print(f"{packed.skipped} rows were skipped; {pack.out}/skipped.tsv says which and why")
    print(f"train on them with: data.train.shards='{pack.out}/*.tar' data.train.captions={packed.captions}")
