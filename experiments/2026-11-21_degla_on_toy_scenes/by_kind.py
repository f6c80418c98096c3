"""Of the swapped captions of held-out combinations: those that swap attributes, and those that swap sides.

    python by_kind.py --out FOLDER [FOLDER ...]

FOLDER is what `run.py --out` wrote. Prints the shares of captions that a picture prefers to its swapped ones.
"""

import argparse
import json
import re
from pathlib import Path

import torch

import vlm
from vlm.data import open_shards, read_records
from vlm.distributed import Topology
from vlm.inference import Embedder

THING = re.compile(r"(?:small|large) \w+ \w+ \w+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", type=Path, default=None, help="instead of all of --out")
    given = parser.parse_args()
    shards = f"{given.out}/data/toy/choice_held_out/*.tar"
    records = list(read_records(open_shards(shards, key="shards")))
    for run in given.runs or sorted(path.parent for path in given.out.glob("seed*/*/checkpoints")):
        print(f"{run.parent.name}/{run.name:<28}", json.dumps(shares(run, shards, records)))


def shares(run: Path, shards: str, records: list[dict]) -> dict[str, float]:
    embedder = Embedder(vlm.load(run), Topology.current(), batch_size=256, num_workers=0)
    images = embedder.images(shards).features
    pairs = [
        (row, record["json"]["caption_en"], wrong)
        for row, record in enumerate(records)
        for wrong in record["json"]["swapped_en"]
    ]
    rows = torch.tensor([row for row, _, _ in pairs])
    right = (images[rows] * embedder.texts([own for _, own, _ in pairs])).sum(1)
    wrong = (images[rows] * embedder.texts([text for _, _, text in pairs])).sum(1)
    won = right > wrong
    sides = torch.tensor(
        [sorted(THING.findall(own)) == sorted(THING.findall(text)) for _, own, text in pairs]
    )
    return {
        "attributes": round(100 * won[~sides].float().mean().item(), 1),
        "sides": round(100 * won[sides].float().mean().item(), 1),
        "sides among them": round(100 * sides.float().mean().item(), 1),
    }


if __name__ == "__main__":
    main()
