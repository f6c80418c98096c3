"""`vlm bench step`: speed of a training step, with the configuration of a training."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.train import run_from
from vlm.settings import build, resolve


@command("bench_step")
def main(config: DictConfig) -> None:
    """Entry point of `vlm bench step`."""
    values = resolve(config)
    bench = build(values["bench"], "bench")
    report = bench.run(run_from(values), sys.argv[1:], print)
    print(f"\n{report}")
    if bench.out is not None:
        print(f"\nwritten: {', '.join(map(str, report.write(Path(bench.out))))}")
