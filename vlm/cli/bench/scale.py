"""`vlm bench scale`: what the loss takes of a rank as ranks are added."""

from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve


@command("bench_scale")
def main(config: DictConfig) -> None:
    """Entry point of `vlm bench scale`."""
    bench = build(resolve(config), "")
    report = bench.run(print)
    print(f"\n{report}")
    if bench.out is not None:
        from vlm.bench.scale_plot import draw_scale

        paths = report.write(Path(bench.out))
        draw_scale(report.rows, Path(bench.out, "scale.png"))
        print(f"\nwritten: {', '.join(map(str, paths))}, {Path(bench.out, 'scale.png')}")
