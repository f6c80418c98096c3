"""Seconds of zero-shot classification and retrieval: ours, CLIP_benchmark and open_clip, in turn.

python run.py PYTHON FOLDER CIFAR10 CAPTIONS [--pictures N] [--rounds N] [--workers N]

PYTHON has open_clip and clip_benchmark; CIFAR10 is a folder with test shards and `classnames.json`; CAPTIONS
are shards of pictures with `caption_en` in json. All get the same random ViT-S-32 of open_clip, the same
shards, float32, batches of 64 and the same number of worker processes.
"""

import argparse
import glob
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MODEL = "ViT-S-32"
TEMPLATES = [
    f"a {kind} photo of {article} {size}{{c}}."
    for kind in ("blurry", "black and white", "low contrast", "high contrast", "bad", "good")
    for article, size in (("a", ""), ("the", ""), ("a", "big "))
]
MAKE = """
import sys, torch, open_clip
torch.manual_seed(0)
torch.save(open_clip.create_model(sys.argv[1]).state_dict(), sys.argv[2])
package = open_clip.__path__[0]
print(package + "/model_configs", package + "/bpe_simple_vocab_16e6.txt.gz")
"""


def samples(pattern: str) -> Iterator[dict[str, bytes]]:
    """The members of each sample of some shards."""
    for shard in sorted(glob.glob(pattern)):
        with tarfile.open(shard) as tar:
            found: dict[str, dict[str, bytes]] = {}
            for header in tar:
                key, _, extension = header.name.partition(".")
                found.setdefault(key, {})[extension] = tar.extractfile(header).read()
        yield from found.values()


def write_set(folder: Path, chosen: list[dict[str, bytes]], **texts: str) -> None:
    """A data set in CLIP_benchmark's layout, of one shard."""
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for row, members in enumerate(chosen):
            for extension, data in members.items():
                header = tarfile.TarInfo(f"{row:06d}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def write_sets(folder: Path, cifar: Path, captions: str, count: int) -> None:
    names = json.loads((cifar / "classnames.json").read_text())["en"]
    shown = [{"jpg": own["jpg"], "cls": own["cls"]} for own in samples(str(cifar / "cifar10-test-*"))]
    classes = {"classnames": "\n".join(names), "zeroshot_classification_templates": "\n".join(TEMPLATES)}
    write_set(folder / "cifar10", shown[:count], **classes)
    pairs = [
        {kind: own[kind] for kind in own if kind in ("png", "jpg", "webp")}
        | {"txt": json.loads(own["json"])["caption_en"].encode()}
        for own in samples(captions)
    ]
    write_set(folder / "captions", pairs[:count], dataset_type="retrieval")


class Bench:
    """The three ways, each a command that prints what a whole run takes."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.python, self.folder, self.workers = given.python, given.folder, str(given.workers)
        self.weights = self.folder / f"{MODEL}.pt"
        made = subprocess.run(
            [self.python, "-c", MAKE, MODEL, str(self.weights)], check=True, capture_output=True, text=True
        )
        self.configs, self.merges = made.stdout.split()

    def ours(self, name: str, out: Path, *more: str) -> dict[str, float]:
        words = [f"checkpoints={MODEL}:{self.weights}", f"clip_benchmark.root={self.folder}/{{name}}"]
        words += [f"clip_benchmark.names=[{name}]", f"out={out}", "device=cpu", "batch_size=64"]
        words += [f"open_clip.model_configs={self.configs}", f"open_clip.tokenizer_path={self.merges}"]
        words += [f"num_workers={self.workers}", f"cache={out}/cache", *more]
        seconds = timed([sys.executable, "-m", "vlm.cli.main", "sweep", *words])
        (cell,) = (json.loads(path.read_text()) for path in (out / "cells").rglob(f"{name}.zeroshot*.json"))
        return {"command": seconds, **{key: cell["seconds"][key] for key in ("images", "texts")}}

    def clip_benchmark(self, name: str, out: Path) -> dict[str, float]:
        task = "retrieval" if name == "captions" else "classification"
        words = ["eval", "--dataset", f"wds/{name}", "--dataset_root", str(self.folder / name)]
        words += ["--model", MODEL, "--pretrained", str(self.weights), "--no_amp", "--batch_size", "64"]
        words += ["--num_workers", self.workers, "--task", f"zeroshot_{task}", "--recall_k", "1", "5", "10"]
        return {
            "command": timed([self.python, "-m", "clip_benchmark.cli", *words, "--output", f"{out}.json"])
        }

    def open_clip(self, name: str, out: Path) -> dict[str, float]:
        script = Path(__file__).with_name("open_clip_zero_shot.py")
        words = [MODEL, str(self.weights), str(self.folder / name), self.workers, f"{out}.json"]
        seconds = timed([self.python, str(script), *words])
        return {"command": seconds, **json.loads(Path(f"{out}.json").read_text())}


def timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python")
    parser.add_argument("folder", type=Path)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("captions")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    write_sets(given.folder, given.cifar10, given.captions, given.pictures)
    bench = Bench(given)
    found: dict[str, list[float]] = {}
    for number in range(given.rounds):
        for name in ("cifar10", "captions"):
            out = given.folder / f"round{number}_{name}_{given.workers}"
            ways = [("ours", bench.ours), ("clip_benchmark", bench.clip_benchmark)]
            if name == "cifar10":
                ways.append(("open_clip", bench.open_clip))
            for way, call in ways[number % len(ways) :] + ways[: number % len(ways)]:
                for what, seconds in call(name, Path(f"{out}_{way}")).items():
                    found.setdefault(f"{name} {way} {what}", []).append(seconds)
                    print(f"round {number} {name} {way} {what}: {seconds:.1f} s", flush=True)
    for key, values in found.items():
        print(f"median {key}: {median(values):.1f} s of {', '.join(f'{value:.1f}' for value in values)}")


if __name__ == "__main__":
    main()
