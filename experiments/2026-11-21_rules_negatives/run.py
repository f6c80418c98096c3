"""Negatives by rules of real captions: how many a second, how many are kept, and 50 to read.

python run.py DATA OUT en
python run.py DATA OUT zh
"""

import argparse
import gzip
import io
import json
import random
import re
import tarfile
import time
from collections import defaultdict
from pathlib import Path

from PIL import Image

from vlm.curation.negatives import Filters, Rules, make_negatives
from vlm.curation.negatives.rules import RULES
from vlm.data.negatives import parse_negatives
from vlm.data.toy import write_toy
from vlm.data.writer import ShardWriter

READ = 50
TINY = io.BytesIO()
Image.new("RGB", (8, 8), (128, 128, 128)).save(TINY, "PNG")


def english(data: Path) -> dict[str, list[str]]:
    """Captions by photo: COCO as in SugarCrepe, VALSE and the open photos; answers and dialogues left out."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for path in sorted((data / "compositional-annotations" / "sugarcrepe").glob("*.json")):
        for case in json.loads(path.read_text()).values():
            found[re.sub(r"\D", "", Path(case["filename"]).stem)[-12:]][case["caption"].strip()] = None
    for path in sorted((data / "compositional-annotations" / "valse").glob("*.json.gz")):
        for case in json.loads(gzip.decompress(path.read_bytes())).values():
            if "caption" in case and path.name.split(".")[0] not in (
                "coreference-hard",
                "coreference-standard",
            ):
                found[case["image_file"]][str(case["caption"]).strip()] = None
    return {key: list(captions) for key, captions in found.items()}


def open_photos(data: Path) -> list[dict[str, bytes]]:
    """The samples of the open photos, each with a list of captions."""
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in sorted((data / "photos-captions-coco-open").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, extension = member.name.partition(".")
                samples[stem][extension] = tar.extractfile(member).read()
    return list(samples.values())


def chinese(data: Path) -> dict[str, list[str]]:
    """Sentences by photo."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (data / "text-bilingual" / "coco-cn_ext.icap2020.txt").read_text("utf-8").splitlines():
        key, sentence = line.split("\t")
        found[key.partition("#")[0]].append(sentence)
    return found


def pack(data: Path, folder: Path, language: str) -> None:
    texts = english(data) if language == "en" else chinese(data)
    samples = [{"png": TINY.getvalue(), "json": json.dumps({"text": t}).encode()} for t in texts.values()]
    if language == "en":
        samples += open_photos(data)
    with ShardWriter(folder, prefix="", max_samples=1000) as writer:
        for number, sample in enumerate(samples):
            writer.write(f"{number:06d}", sample)


def make(shards: str, captions: list[str], language: str, report: Path, name: str = "negatives"):
    began = time.perf_counter()
    made = make_negatives(
        shards,
        Rules(rules=list(RULES), lexicon_samples=50000),
        captions=captions,
        language=language,
        name=name,
        out=None,
        report=report,
        filters=Filters(per_caption=4, length_ratio=2.0),
        seed=0,
        workers=None,
    )
    whole = time.perf_counter() - began
    counts = made.counts
    print(f"{counts.captions} captions, {counts.kept} negatives, kept {counts.kept / counts.made:.2%}")
    print(
        f"{made.new_negatives / made.seconds:.0f} negatives/s, "
        f"{made.new_captions / made.seconds:.0f} captions/s, with the pass for words {whole:.1f} s"
    )
    for rule in made.counts.rules:
        print(f"  {rule}: {dict(made.counts.of_rule(rule))}")
    return made


def read(places, language: str) -> None:
    """50 at random, as lines of a table."""
    found = [n for place in places for row in parse_negatives(place.read_bytes()) for n in row.negatives]
    for number, negative in enumerate(random.Random(1).sample(found, READ), start=1):
        print(f"| {number} | {negative.rule} | {negative.caption} | {negative.negative} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("language", choices=["en", "zh"])
    options = parser.parse_args()
    folder = options.out / options.language
    if not folder.is_dir():
        pack(options.data, folder, options.language)
    made = make(f"{folder}/*.tar", ["json.text", "json.captions_en"], options.language, folder / "report")
    read(made.places, options.language)
    if options.language == "zh":
        toy = options.out / "toy"
        if not toy.is_dir():
            write_toy(
                toy,
                num_train=5300,
                num_test=1,
                num_held_out=1,
                num_choice=1,
                image_size=32,
                seed=0,
                progress=False,
            )
        print("toy scenes:")
        make(f"{toy}/train/*.tar", ["json.caption_zh"], "zh", toy / "report")


if __name__ == "__main__":
    main()
