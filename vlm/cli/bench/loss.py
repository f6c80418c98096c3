"""`vlm bench loss`: memory and time of each way to compute a contrastive loss."""

from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve


@command("bench_loss")
def main(config: DictConfig) -> None:
    """Entry point of `vlm bench loss`."""
    bench = build(resolve(config), "")
    report = bench.run(print)
    print(f"\n{report}")
    if bench.out is not None:
        print(f"\nwritten: {', '.join(map(str, report.write(Path(bench.out))))}")
