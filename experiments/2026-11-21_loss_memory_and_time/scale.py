"""What the loss takes on a rank as ranks are added, from the formulas of vlm.losses: scale.csv, scale.png."""

import argparse
import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlm.losses import gathered_bytes, logits_bytes, loss_flops, traffic_bytes

HERE = Path(__file__).parent
RANKS = [2**power for power in range(13)]
PAIRS, DIM, NODE = 1024, 512, 8
MATMUL, MEMORY = 50e12, 3.35e12  # float32 FLOP/s without TF32, bytes/s: assumed, of the order of an H100
NODE_NET, FABRIC = 400e9, 50e9  # bytes/s a rank receives inside a node and between nodes: assumed
TOWERS_S = PAIRS * 31.0e9 / (0.30 * 989e12)  # ViT-B/32, 20 tokens, at 30 % of the peak: assumed
COLOURS = {"local_rows": "#b5541c", "tiled": "#2456a6", "grouped": "#3c8d40"}
PASSES = {"local_rows": 3.0, "tiled": 4.0}  # how often the memory of the logits is written and read
GIB = 2**30
PLOTS = {"memory_gib": "memory of the loss, GiB", "traffic_gib": "received, GiB a step", "step_s": "step, s"}


def row(method: str, ranks: int) -> dict[str, float | str | int]:
    """Of one way to compute the softmax loss with so many ranks; grouped: tiles inside each node."""
    implementation = "local_rows" if method == "local_rows" else "tiled"
    members = min(ranks, NODE) if method == "grouped" else ranks
    sizes = {"pairs": PAIRS, "all_pairs": PAIRS * members}
    vectors = {"kind": "softmax", "dim": DIM, **sizes}
    traffic = traffic_bytes(implementation, **vectors)
    logits = 2 * 4 * PAIRS * PAIRS * members  # both directions, each computed once or computed again
    loss_s = loss_flops(implementation, **vectors) / MATMUL + 2 * PASSES[implementation] * logits / MEMORY
    loss_s += traffic / (NODE_NET if members <= NODE else FABRIC)
    return {
        "method": method,
        "ranks": ranks,
        "logits_gib": logits_bytes(implementation, **sizes) / GIB,
        "gathered_gib": gathered_bytes(implementation, **vectors) / GIB,
        "memory_gib": (logits_bytes(implementation, **sizes) + gathered_bytes(implementation, **vectors))
        / GIB,
        "traffic_gib": traffic / GIB,
        "loss_s": loss_s,
        "step_s": loss_s + TOWERS_S,
    }


def draw(rows: list[dict[str, float | str | int]], path: Path) -> None:
    """A log-log panel a quantity, one line a method."""
    width, height, left, top, bottom = 400, 360, 62, 50, 44
    picture = Image.new("RGB", (width * len(PLOTS), height), "#ffffff")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, (column, title) in enumerate(PLOTS.items()):
        values = [float(row[column]) for row in rows if float(row[column]) > 0]
        low, high = decade(min(values), up=False), decade(max(values), up=True)

        def place(
            ranks: float, value: float, number: int = number, low: int = low, high: int = high
        ) -> tuple[float, float]:
            across = logarithm(ranks, 2) / logarithm(RANKS[-1], 2)
            up = (logarithm(value, 10) - low) / (high - low)
            x = width * number + left + across * (width - left - 20)
            return x, height - bottom - up * (height - top - bottom)

        for power in range(low, high + 1):
            x, y = place(1, 10.0**power)
            pen.line([(x, y), (width * (number + 1) - 20, y)], fill="#dfe1e4")
            pen.text((x - 8, y), f"{10.0**power:g}", fill="#5c636b", font=font, anchor="rm")
        for ranks in RANKS[::3]:
            x, y = place(ranks, 10.0**low)
            pen.text((x, y + 8), str(ranks), fill="#5c636b", font=font, anchor="ma")
        pen.text((width * number + left, 10), f"{title}, over ranks", fill="#1c1f23", font=font)
        for order, (method, colour) in enumerate(COLOURS.items()):
            points = [(int(r["ranks"]), float(r[column])) for r in rows if r["method"] == method]
            pen.line([place(*p) for p in points if p[1] > 0], fill=colour, width=2, joint="curve")
            pen.text((width * number + left + 8 + 90 * order, 30), method, fill=colour, font=font)
    picture.save(path)


def decade(value: float, *, up: bool) -> int:
    """The power of ten at or beyond a value."""
    return (math.ceil if up else math.floor)(math.log10(value))


def logarithm(value: float, base: float) -> float:
    return math.log(value, base)


def main() -> None:
    """Write scale.csv and scale.png, print the rows of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    rows = [row(method, ranks) for method in COLOURS for ranks in RANKS]
    with (args.out / "scale.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    draw(rows, args.out / "scale.png")
    for r in rows:
        if r["ranks"] in (1, 8, 64, 512, 4096):
            cells = [
                f"{r[name]:.3g}" for name in ("logits_gib", "gathered_gib", "traffic_gib", "loss_s", "step_s")
            ]
            print(f"| {r['method']} | {r['ranks']:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
