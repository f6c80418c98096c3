"""Images per second of `vlm shards pack` beside `tar cf` of the same files, commands taken in turn."""

import argparse
import csv
import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import vlm

BASES, SIZE = 16, (200, 160)


def write_pictures(folder: Path, count: int) -> int:
    """JPEGs of 10 to 20 KB, no two alike, and a table of them. Returns their bytes."""
    rng = np.random.default_rng(0)
    bases = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
                SIZE, Image.Resampling.BICUBIC
            ),
            np.int16,
        )
        for _ in range(BASES)
    ]
    size = 0
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        for number in range(count):
            name = f"pictures/{number // 1000:03d}/{number:06d}.jpg"
            grain = rng.normal(0, 8, (SIZE[1], SIZE[0], 1))
            buffer = io.BytesIO()
            pixels = (bases[number % BASES] + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG", quality=int(rng.integers(80, 93)))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(buffer.getvalue())
            size += buffer.tell()
            writer.writerow([name, f"a picture with the number {number}"])
    return size


def commands(folder: Path) -> dict[str, list[str]]:
    pack = [sys.executable, "-m", "vlm.cli.main", "shards", "pack", f"input={folder}/table.csv"]
    return {
        "tar cf": ["tar", "cf", str(folder / "out" / "pictures.tar"), "-C", str(folder), "pictures"],
        "pack, 2 workers": [*pack, f"out={folder}/out", "workers=2"],
        "pack, 1 worker": [*pack, f"out={folder}/out", "workers=1"],
    }


def run(command: list[str], folder: Path) -> tuple[float, str]:
    """Wall seconds of a command that writes to an empty `out`, and what it prints."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    os.sync()
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout.partition("\n")[0]


def main() -> None:
    """Print the seconds of each command in each round, and the medians as images/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="on the disk to be measured")
    args = parser.parse_args()
    print(f"python {platform.python_version()}, vlm {vlm.__version__}, {os.cpu_count()} cores", end=", ")
    print(subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout.partition("\n")[0])
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size = write_pictures(folder, args.images)
        print(f"{args.images} JPEGs, {size / args.images / 1e3:.1f} KB in the mean")
        seconds: dict[str, list[float]] = {label: [] for label in commands(folder)}
        for command in commands(folder).values():
            run(command, folder)  # fills the page cache
        for number in range(args.rounds):
            labels = list(seconds)
            for label in labels[number % 3 :] + labels[: number % 3]:
                spent, printed = run(commands(folder)[label], folder)
                seconds[label].append(spent)
                print(
                    f"round {number + 1}: {label:<16}{spent:6.2f} s  {printed.rpartition('(')[2].rstrip(')')}"
                )
    for label, spent in seconds.items():
        rates = sorted(args.images / s for s in spent)
        print(
            f"{label:<16}median {statistics.median(rates):6.0f} images/s ({rates[0]:.0f} to {rates[-1]:.0f})"
        )


if __name__ == "__main__":
    main()
