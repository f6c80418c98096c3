"""A random open_clip ViT-B-32, imported, exported in every format, and compared by the library of each.

python run.py PYTHON FOLDER    PYTHON is an interpreter that has open_clip; 3 GB are written to FOLDER

The interpreter that runs this needs open_clip too, for its check; otherwise that line says "not checked".
"""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import vlm  # noqa: F401  before transformers, which imports torchvision
from vlm.inference.export import export_model
from vlm.inference.foreign import Given, import_model

MAKE = Path(__file__).parents[2] / "tests/inference/open_clip_tiny/make.py"
MERGES = "import open_clip.tokenizer as t; print(t.default_bpe())"
WEIGHTS = "open_clip_model.safetensors"


def main() -> None:
    python, folder = sys.argv[1], Path(sys.argv[2])
    subprocess.run([python, str(MAKE), "ViT-B-32", str(folder / "source")], check=True)
    merges = subprocess.run([python, "-c", MERGES], check=True, capture_output=True, text=True).stdout.strip()
    unknown = ("model_config", "activation", "head_width", "mean", "std")
    unknown += ("resize_mode", "interpolation", "background")
    given = Given(tokenizer_path=merges, **dict.fromkeys(unknown))
    import_model(folder / "source", folder / "imported", given)
    for name in ("transformers", "open_clip", "onnx", "safetensors"):
        exported = export_model(str(folder / "imported"), folder / name, format=name, weights="model")
        print(f"{name}: {exported.check}")
    before, after = (load_file(folder / name / WEIGHTS) for name in ("source", "open_clip"))
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    print(f"weights of open_clip, after import and export: {'the same' if same else 'others'}")


if __name__ == "__main__":
    main()
