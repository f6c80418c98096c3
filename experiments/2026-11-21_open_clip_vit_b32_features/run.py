"""Features of a random open_clip ViT-B-32 in ours, and what happens where its activation is switched.

python run.py PYTHON FOLDER    PYTHON is an interpreter that has open_clip; 1.2 GB are written to FOLDER
"""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import vlm
from vlm.errors import VlmError
from vlm.inference.foreign import Given, import_model

MAKE = Path(__file__).parents[2] / "tests/inference/open_clip_tiny/make.py"
MERGES = "import open_clip.tokenizer as t; print(t.default_bpe())"


def made(python: str, folder: Path) -> tuple[Path, str]:
    """The model as open_clip writes it, and CLIP's merges, which open_clip brings along."""
    subprocess.run([python, str(MAKE), "ViT-B-32", str(folder)], check=True)
    done = subprocess.run([python, "-c", MERGES], check=True, capture_output=True, text=True)
    return folder, done.stdout.strip()


def given(merges: str, activation: str | None = None) -> Given:
    unknown = ("model_config", "head_width", "mean", "std", "resize_mode", "interpolation", "background")
    return Given(activation=activation, tokenizer_path=merges, **dict.fromkeys(unknown))


@torch.no_grad()
def compare(checkpoint: Path, source: Path) -> None:
    model = vlm.load(checkpoint).model.float()
    expected = load_file(source / "expected.safetensors")
    encode = {"image": model.encode_image, "text": model.encode_text}
    for kind, tower in encode.items():
        found = tower(expected[kind])
        for activation in ("gelu", "quick_gelu"):
            difference = (found - expected[f"{kind}_{activation}"]).abs().max().item()
            print(f"{kind}, open_clip with {activation}: largest difference {difference:.2g}")


def refused(what: str, function, *arguments) -> None:
    try:
        function(*arguments)
    except VlmError as error:
        print(f"{what}: {type(error).__name__}: {error}")
    else:
        raise SystemExit(f"{what} is not refused")


def switch(path: Path) -> None:
    """Say of both towers that their activation is the other one."""
    text = path.read_text()
    switched = text.replace('"gelu"', '"quick_gelu"')
    assert switched != text
    path.write_text(switched)


def main() -> None:
    python, folder = sys.argv[1], Path(sys.argv[2])
    source, merges = made(python, folder / "source")
    ours = folder / "imported"
    import_model(source, ours, given(merges))
    compare(ours, source)
    other = given(merges, "quick_gelu")
    refused("import with activation=quick_gelu", import_model, source, folder / "switched", other)
    switch(ours / "model.json")
    refused("load with model.json switched", vlm.load, ours)


if __name__ == "__main__":
    main()
