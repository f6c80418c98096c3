"""Memory of a training process and two loader workers over 5,000 steps: memory.csv, memory.png, slopes."""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import vlm
from vlm.charts import number, ticks
from vlm.data.toy import write_toy

HERE = Path(__file__).parent
STEPS, WORKERS, EVERY_S = 5000, 2, 0.5
BROKEN = {7: "png", 130: "json", 411: "png", 682: "json", 905: "png"}
"""Samples of each training shard of 1,000 that are made unusable, and which member is overwritten."""

SIZES = {"num_train": 6000, "num_test": 48, "num_held_out": 48, "num_choice": 48}
OVERRIDES = [
    "experiment=toy",
    *("trainer.accelerator=cpu", "run.name=memory"),
    *(f"make_data.{name}={count}" for name, count in SIZES.items()),  # they are there: nothing is made
    *("model.embed_dim=16", "++model.image.options.channels=[8, 8, 16, 16]"),
    *("++model.image.options.stem_width=8", "model.text.width=24", "model.text.layers=1"),
    *("model.text.heads=3", "tokenizer.vocab_size=400"),
    *("data.global_batch_size=32", f"data.num_workers={WORKERS}", "data.shuffle_samples=2048"),
    *("trainer.log_every_n_steps=25", "checkpoint.every_n_steps=500", "evaluation.every_n_steps=1000"),
]
COLOURS = {"training": "#2b6cb0", "worker 0": "#1a7a4a", "worker 1": "#b0382a"}


def damage(shards: Path) -> int:
    """Overwrite the members named in `BROKEN` where they lie. Returns of how many samples."""
    count = 0
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            broken = [
                member
                for member in tar
                if (place := int(member.name.partition(".")[0][-6:]) % 1000) in BROKEN
                and member.name.endswith(BROKEN[place])
            ]
        with path.open("r+b") as file:
            for member in broken:
                file.seek(member.offset_data)
                file.write(b"\xff" * member.size)
        count += len(broken)
    return count


def children(pid: int) -> list[int]:
    """The processes that `pid` started, oldest first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return sorted(found)


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory, and how much of it is no file: heaps, without libraries that other processes share."""
    kib = {"Rss": 0, "Anonymous": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name = line.partition(":")[0]
        if name in kib:
            kib[name] = int(line.split()[1])
    return {"rss_mib": kib["Rss"] / 1024, "anonymous_mib": kib["Anonymous"] / 1024}


def last_step(metrics_csv: Path) -> int:
    """The step of the last whole row, 0 before there is one."""
    if not metrics_csv.exists():
        return 0
    rows = metrics_csv.read_text().rpartition("\n")[0].splitlines()[1:]
    return int(rows[-1].partition(",")[0]) if rows else 0


def watch(folder: Path, steps: int) -> list[dict[str, float | str]]:
    """Train, and look twice a second at every process."""
    command = [sys.executable, "-m", "vlm.cli.train", *OVERRIDES, f"trainer.max_steps={steps}"]
    places = [f"paths.data={folder}/data", f"paths.runs={folder}/runs"]
    metrics_csv = folder / "runs" / "memory" / "metrics.csv"
    rows: list[dict[str, float | str]] = []
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([*command, *places], stdout=log, stderr=log)
        while process.poll() is None:
            step = last_step(metrics_csv)
            if step:
                names = dict(zip(COLOURS, [process.pid, *children(process.pid)], strict=False))
                for name, pid in names.items():
                    try:
                        found = memory_mib(pid)
                    except OSError:  # it has ended
                        continue
                    seconds = round(time.perf_counter() - start, 2)
                    rows.append({"step": step, "seconds": seconds, "process": name, **found})
            time.sleep(EVERY_S)
    if process.returncode:
        sys.exit((folder / "log.txt").read_text())
    print((folder / "log.txt").read_text().splitlines()[-1])
    return [row for row in rows if int(row["step"]) < steps]  # in the end the workers are told to go


def slope_kib(rows: list[dict[str, float | str]], column: str, *, after: int) -> float:
    """KiB in 1,000 steps, by least squares."""
    kept = [(float(row["step"]), float(row[column])) for row in rows if float(row["step"]) >= after]
    return float(np.polyfit(*np.array(kept).T, 1)[0]) * 1024 * 1000


def draw(rows: list[dict[str, float | str]], path: Path) -> None:
    """One line a process: resident memory over the steps."""
    width, height, left, right, top, bottom = 960, 480, 70, 110, 40, 50
    picture = Image.new("RGB", (width, height), "#ffffff")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    highest = max(float(row["rss_mib"]) for row in rows)
    last = max(float(row["step"]) for row in rows)
    y_ticks = ticks(0, highest * 1.1, wanted=6)

    def place(step: float, mib: float) -> tuple[float, float]:
        across, down = step / last, mib / max(highest * 1.1, y_ticks[-1])
        return left + across * (width - left - right), height - bottom - down * (height - top - bottom)

    for mib in y_ticks:
        x, y = place(0, mib)
        pen.line([(x, y), (width - right, y)], fill="#dfe1e4")
        pen.text((x - 8, y), number(mib), fill="#5c636b", font=font, anchor="rm")
    for step in ticks(0, last, wanted=5):
        x, y = place(step, 0)
        pen.text((x, y + 8), number(step), fill="#5c636b", font=font, anchor="ma")
    pen.text((left, 12), "resident memory, MiB, over steps", fill="#1c1f23", font=font)
    for place_of_name, (name, colour) in enumerate(COLOURS.items()):
        line = [place(float(row["step"]), float(row["rss_mib"])) for row in rows if row["process"] == name]
        pen.line(line, fill=colour, width=2, joint="curve")
        x, y = place(last, 0)
        pen.text((x + 8, y - 20 * (len(COLOURS) - place_of_name)), name, fill=colour, font=font, anchor="lm")
    picture.save(path)


def main() -> None:
    """Train, write memory.csv and memory.png, print what each process gains in 1,000 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    print(f"python {platform.python_version()}, vlm {vlm.__version__}, torch {torch.__version__}", end=", ")
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_toy(folder / "data" / "toy", **SIZES, image_size=32, seed=0, progress=False)
        print(f"{damage(folder / 'data' / 'toy' / 'train')} of {SIZES['num_train']} samples are damaged")
        rows = watch(folder, args.steps)
    with (args.out / "memory.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    draw(rows, args.out / "memory.png")
    print(f"{'KiB in 1,000 steps':<20}{'after step':>12}{'resident':>10}{'anonymous':>11}{'median, MiB':>13}")
    for process in COLOURS:
        own = [row for row in rows if row["process"] == process]
        for after in (args.steps // 10, args.steps // 2):
            slopes = [slope_kib(own, column, after=after) for column in ("rss_mib", "anonymous_mib")]
            median = statistics.median(float(row["rss_mib"]) for row in own if int(row["step"]) >= after)
            print(f"{process:<20}{after:>12}{slopes[0]:>10.0f}{slopes[1]:>11.0f}{median:>13.1f}")


if __name__ == "__main__":
    main()
