"""One random ViT-B-32 of open_clip, scored by CLIP_benchmark and by ours on the same shards.

python run.py PYTHON FOLDER CIFAR10 PHOTOS

PYTHON has open_clip and clip_benchmark; FOLDER takes 1.3 GB; CIFAR10 is a shard of pictures with
`cls`, beside `classnames.json` with names under `en`; PHOTOS a shard of photos with `captions_en` in json.
"""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch

import vlm  # before torchvision
from vlm.data import open_shards, read_images

NUM_PICTURES = 300
SIDE = 224
TEMPLATES = "a photo of a {c}.\na blurry photo of the {c}.\n"
MAKE = """
import sys, torch, open_clip
from open_clip import tokenizer
from pathlib import Path
torch.manual_seed(0)
model = open_clip.create_model("ViT-B-32")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
torch.save(model.state_dict(), sys.argv[1])
print(Path(open_clip.__file__).parent / "model_configs/ViT-B-32.json")
print(tokenizer.default_bpe())
"""


def samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample."""
    with tarfile.open(shard) as tar:
        found: dict[str, dict[str, bytes]] = {}
        for header in tar:
            key, _, extension = header.name.partition(".")
            found.setdefault(key, {})[extension] = tar.extractfile(header).read()
    yield from found.items()


def write_set(folder: Path, members: Iterator[dict[str, bytes]], **texts: str) -> Path:
    """A data set in CLIP_benchmark's layout, of one shard."""
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for row, own in enumerate(members):
            for extension, data in own.items():
                header = tarfile.TarInfo(f"{row:06d}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return folder


def cut_by_torchvision(image):
    """The pixels that open_clip's own preprocessing gives a model."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    return Compose([Resize(SIDE, InterpolationMode.BICUBIC), CenterCrop(SIDE)])(image.convert("RGB"))


def as_png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def write_sets(folder: Path, cifar: Path, photos: Path) -> list[Path]:
    names = json.loads((cifar.parent / "classnames.json").read_text())["en"]
    shown = [own for _, own in samples(cifar)][:NUM_PICTURES]
    classes = {"classnames": "\n".join(names), "zeroshot_classification_templates": TEMPLATES}
    captions = ["\n".join(json.loads(own["json"])["captions_en"]).encode() for _, own in samples(photos)]
    pictures = [own["jpg"] for _, own in samples(photos)]
    shards = open_shards(str(photos), key="photos")
    cut = [as_png(cut_by_torchvision(image)) for image in read_images(shards, range(shards.num_samples))]
    return [
        write_set(folder / "cifar10", ({"jpg": own["jpg"], "cls": own["cls"]} for own in shown), **classes),
        *(
            write_set(
                folder / name,
                ({kind: data, "txt": text} for data, text in zip(own, captions, strict=True)),
                dataset_type="retrieval",
            )
            for name, kind, own in (("photos_cut", "png", cut), ("photos", "jpg", pictures))
        ),
    ]


def of_clip_benchmark(python: str, weights: Path, data: Path, out: Path) -> dict[str, float]:
    command = [python, "-m", "clip_benchmark.cli", "eval", "--dataset", f"wds/{data.name}"]
    command += ["--dataset_root", str(data), "--model", "ViT-B-32", "--pretrained", str(weights)]
    command += ["--no_amp", "--num_workers", "0", "--recall_k", "1", "5", "10", "--output", str(out)]
    retrieval = (data / "dataset_type.txt").exists()
    command += ["--task", "zeroshot_retrieval" if retrieval else "zeroshot_classification"]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text())["metrics"]


def of_ours(checkpoint: Path, data: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "vlm.cli.main", "evaluate", f"run={checkpoint}", "suite=zero_shot"]
    subprocess.run(
        [*command, f"suite.root={data}", f"out={out}", "batch_size=64"], check=True, capture_output=True
    )
    return json.loads((out / "results.json").read_text())["results"]["zero_shot"]["metrics"]


def compare_pixels(checkpoint: Path, photos: Path) -> None:
    preprocess = vlm.load(checkpoint).preprocess
    shards = open_shards(str(photos / "test/0.tar"), key="photos")
    rows = range(shards.num_samples)
    apart = []
    for image, same in zip(read_images(shards, rows), read_images(shards, rows), strict=True):
        other = torch.frombuffer(bytearray(cut_by_torchvision(image).tobytes()), dtype=torch.uint8)
        ours = preprocess(same).permute(1, 2, 0).flatten()
        apart.append((ours.int() - other.int()).abs().double().mean().item())
    print(
        f"photos: pixels differ by {sum(apart) / len(apart):.2f} of 255 in the mean, at most {max(apart):.2f}"
    )


def main() -> None:
    python, folder, cifar, photos = sys.argv[1], *map(Path, sys.argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    weights, checkpoint = folder / "random.pt", folder / "imported"
    made = subprocess.run([python, "-c", MAKE, str(weights)], check=True, capture_output=True, text=True)
    config, merges = made.stdout.split()
    command = [sys.executable, "-m", "vlm.cli.main", "import", f"from={weights}", f"out={checkpoint}"]
    command += [f"model_config={config}", f"tokenizer_path={merges}", "interpolation=bicubic"]
    command += ["mean=[0.48145466,0.4578275,0.40821073]", "std=[0.26862954,0.26130258,0.27577711]"]
    command += ["resize_mode=shortest", "background=[255,255,255]"]
    subprocess.run(command, check=True)
    for data in write_sets(folder, cifar, photos):
        theirs = of_clip_benchmark(python, weights, data, folder / f"{data.name}.json")
        ours = of_ours(checkpoint, data, folder / f"scores_{data.name}")
        for metric, value in theirs.items():
            print(
                f"{data.name} {metric}: {value:.8f} {ours[metric]:.8f} {abs(value - ours[metric]):.1e}",
                flush=True,
            )
    compare_pixels(checkpoint, folder / "photos")


if __name__ == "__main__":
    main()
