"""The curves of `run.py` in one picture, and the samples that each needs for a score. Needs matplotlib.

python plot.py --out FOLDER
"""

import argparse
import csv
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

BATCH, METRIC = 128, "eval/held_out_en/acc1"
ARMS = {
    "scratch": ("CLIP from scratch", "tab:gray"),
    "lit_self": ("LiT: clusters of the tower's own features", "tab:red"),
    "lit_clip": ("LiT: clusters of a CLIP's features", "tab:orange"),
    "lit_cls": ("LiT: names of single things", "tab:blue"),
}
SCORES = (0.25, 0.4, 0.5, 0.6, 0.7)


def curve(run: Path) -> dict[int, float]:
    """Score by samples of image-text pairs."""
    path = run / "metrics.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {int(row["step"]) * BATCH: float(row[METRIC]) for row in csv.DictReader(file) if row[METRIC]}


def reached(scores: dict[int, float], wanted: float) -> int | None:
    """Samples of the first evaluation that is as good."""
    return next((samples for samples, score in sorted(scores.items()) if score >= wanted), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    for arm, (label, color) in ARMS.items():
        curves = [curve(run) for run in sorted(given.out.glob(f"seed*/runs/{arm}"))]
        curves = [scores for scores in curves if len(scores) == len(curves[0])]
        if not curves:
            continue
        samples = sorted(set.intersection(*(set(scores) for scores in curves)))
        for scores in curves:
            axes.plot(samples, [100 * scores[s] for s in samples], color=color, alpha=0.3, linewidth=1)
        mean = [100 * statistics.mean(scores[s] for scores in curves) for s in samples]
        axes.plot(samples, mean, color=color, linewidth=2.2, label=f"{label} (last {mean[-1]:.1f} %)")
        print(arm, [f"{100 * scores[samples[-1]]:.1f} %" for scores in curves])
        for wanted in SCORES:
            print(f"    {100 * wanted:.0f} % after", [reached(scores, wanted) for scores in curves])
    axes.set_xlabel("image-text pairs seen")
    axes.set_ylabel("zero-shot top-1 of 192 held-out names, %")
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1)
    figure.savefig(Path(__file__).with_name("curves.png"), dpi=130)


if __name__ == "__main__":
    main()
