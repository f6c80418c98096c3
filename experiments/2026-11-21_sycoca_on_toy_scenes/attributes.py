"""Of the captions that each run writes, which say the right colours, textures, shapes and sizes.

    python attributes.py --out FOLDER

A caption is right about colours if it names those of its picture's caption, each as often; in whatever order.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import fmean

from run import ARMS

from vlm import load
from vlm.data import open_shards, read_records
from vlm.data.toy.scenes import ATTRIBUTES
from vlm.distributed import Topology
from vlm.inference import Decoding, Embedder

GREEDY = Decoding(strategy="greedy", beams=1, top_p=1.0, temperature=1.0, max_length=None, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    shards = str(given.out / "data/toy/choice_held_out/*.tar")
    truth = [record["json"]["caption_en"] for record in read_records(open_shards(shards, key="shards"))]
    kinds = [*ATTRIBUTES, "all"]
    print("| |", " | ".join(kinds), "|\n|---|" + "---|" * len(kinds))
    for arm in list(ARMS)[1:]:
        runs = sorted(path.with_suffix("") for path in given.out.glob(f"seed*/{arm}.json"))
        found = [right(written(run, shards), truth) for run in runs]
        cells = [
            f"{fmean(f[kind] for f in found):.1f} ({' / '.join(f'{f[kind]:.1f}' for f in found)})"
            for kind in kinds
        ]
        print(f"| {arm} |", " | ".join(cells), "|", flush=True)


def written(run: Path, shards: str) -> list[str]:
    kept = run.with_suffix(".captions.json")
    if not kept.exists():
        embedder = Embedder(load(run), Topology.current(), batch_size=128, num_workers=0)
        kept.write_text(json.dumps(embedder.captions(shards, GREEDY)))
    captions: list[str] = json.loads(kept.read_text())
    return captions


def right(captions: list[str], truth: list[str]) -> dict[str, float]:
    """Percent, by attribute and for all together."""
    found: dict[str, list[bool]] = {kind: [] for kind in ATTRIBUTES}
    for caption, wanted in zip(captions, truth, strict=True):
        for kind, values in ATTRIBUTES.items():
            said, asked = (
                Counter(word for word in text.split() if word in values) for text in (caption, wanted)
            )
            found[kind].append(said == asked)
    together = [all(row) for row in zip(*found.values(), strict=True)]
    return {kind: 100 * fmean(rows) for kind, rows in {**found, "all": together}.items()}


if __name__ == "__main__":
    main()
