"""The table of a record: python table.py --out FOLDER"""

import argparse
import csv
import json
from pathlib import Path

from run import ARMS

COLUMNS = {
    "zero-shot": "held_out_en/acc1",
    "picture to text": "retrieval_en/text_retrieval_recall@1",
    "text to picture": "retrieval_en/image_retrieval_recall@1",
    "exact": "captions_en/exact_match",
    "CIDEr": "captions_en/CIDEr",
    "perplexity": "captions_en/perplexity",
    "error": "rebuilt_en/error",
    "error under another": "rebuilt_en/error_other",
}
PERCENT = ("zero-shot", "picture to text", "text to picture", "exact")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print("| |", " | ".join(COLUMNS), "| seconds |")
    for arm in ARMS:
        runs = [
            run for run in sorted(given.out.glob(f"seed*/{arm}")) if (run.parent / f"{arm}.json").exists()
        ]
        cells = []
        for name, key in COLUMNS.items():
            values = [value for run in runs if (value := last(run, f"eval/{key}")) is not None]
            values = [100 * value for value in values] if name in PERCENT else values
            digits = 1 if name in PERCENT else 3
            each = " / ".join(f"{value:.{digits}f}" for value in values)
            cells.append(f"{sum(values) / len(values):.{digits}f} ({each})" if values else "")
        seconds = [json.loads((run.parent / f"{arm}.json").read_text())["seconds"] for run in runs]
        print(f"| {arm} |", " | ".join(cells), f"| {' / '.join(f'{s:.0f}' for s in seconds)} |")


def last(run: Path, column: str) -> float | None:
    with (run / "metrics.csv").open(newline="") as file:
        found = [row[column] for row in csv.DictReader(file) if row.get(column)]
    return float(found[-1]) if found else None


if __name__ == "__main__":
    main()
