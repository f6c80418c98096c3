"""Made the files beside it with open_clip 3.3.0: a tiny CLIP with random weights, and its features.

    python make.py             the fixture; one set of weights, its features under both activations
    python make.py ViT-B-32 F  a whole model of open_clip and its features, written to the folder F

open_clip is no dependency of the project. `expected.safetensors` holds normalised images, tokens, and the
unit vectors of both towers with GELU and with QuickGELU.
"""

import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

TINY = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 13, "width": 24, "heads": 3, "layers": 2},
}
# Texts end at the id 9, the last of `write_tokenizer`, and at CLIP's 49407; what follows is padding.
TINY_TEXT = [[8, 1, 2, 4, 9], [8, 6, 9], [8, 1, 7, 3, 5, 1, 2, 9]]
CLIP_TEXT = [[49406, 320, 1125, 539, 320, 2368, 49407], [49406, 736, 49407]]
PREPROCESS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def random_state(config: dict[str, Any], *, noise: float) -> dict[str, torch.Tensor]:
    """Weights in which no bias is zero and no norm is one."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * noise)
    model.logit_scale.fill_(2.0)
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def main(config: dict[str, Any], rows: list[list[int]], folder: Path, *, noise: float) -> None:
    length, size = config["text_cfg"]["context_length"], config["vision_cfg"]["image_size"]
    state = random_state(config, noise=noise)
    text = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    expected = {"image": torch.randn(len(rows), 3, size, size), "text": text}
    for activation in ("gelu", "quick_gelu"):
        model = open_clip.CLIP(**config, quick_gelu=activation == "quick_gelu").eval()
        model.load_state_dict(state)
        expected[f"image_{activation}"] = model.encode_image(expected["image"], normalize=True)
        expected[f"text_{activation}"] = model.encode_text(text, normalize=True)
    open_clip.model.set_model_preprocess_cfg(model, PREPROCESS)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    save_file(expected, folder / "expected.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", model_config=config)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main(TINY, TINY_TEXT, Path(__file__).parent, noise=0.2)
    else:
        main(open_clip.get_model_config(sys.argv[1]), CLIP_TEXT, Path(sys.argv[2]), noise=0.02)
