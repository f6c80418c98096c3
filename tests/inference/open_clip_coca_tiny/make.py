"""Made the folders beside it with open_clip 3.3.0: tiny CoCas with random weights, and what they compute.

    python make.py                  the fixtures
    python make.py coca_ViT-B-32 F  a whole model of open_clip and what it computes, written to the folder F

open_clip is no dependency of the project. `expected.safetensors` holds normalised images, tokens, the unit
vectors of both towers, and the logits of the token after each; `text_correct` are the text tower's where its
`correct_cls_mask` is set, which the released weights were trained without.
"""

import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

VISION = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "output_tokens": True}
POOLED = {**VISION, "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2}
TEXT = {"context_length": 12, "vocab_size": 13, "layers": 1, "embed_cls": True, "output_tokens": True}
DECODER = {"context_length": 12, "vocab_size": 13, "layers": 2}


def config(vision: dict[str, Any], *, embed_dim: int) -> dict[str, Any]:
    return {
        "embed_dim": embed_dim,
        "vision_cfg": vision,
        "text_cfg": {**TEXT, "width": 16, "heads": 2},
        "multimodal_cfg": {**DECODER, "width": 16, "heads": 4},
        "custom_text": True,
    }


TINY = {
    "pooled": config({**POOLED, "width": 24}, embed_dim=16),
    # torch keeps the pooler's attention in other parameters where no width changes in it.
    "same_width": config(POOLED, embed_dim=16),
    # The decoder looks at the patches.
    "patches": config(VISION, embed_dim=12),
}
# Texts end at the id 9, the last of `write_tokenizer`, and at CLIP's 49407; what follows is padding.
TINY_TEXT = [[8, 1, 2, 4, 9], [8, 9], [8, 1, 7, 3, 5, 1, 2, 9], [8, 1, 7, 3, 5, 1, 2, 6, 4, 4, 3, 9]]
CLIP_TEXT = [
    [49406, 320, 1125, 539, 320, 2368, 49407],
    [49406, 736, 49407],
    [49406, *range(1000, 1030), 49407],
    [49406, *range(5000, 5074), 49407],
]
PREPROCESS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def random_model(values: dict[str, Any], *, noise: float) -> open_clip.CoCa:
    """Weights in which no bias is zero and no norm is one."""
    torch.manual_seed(0)
    model = open_clip.CoCa(**{key: value for key, value in values.items() if key != "custom_text"}).eval()
    decoder = model.text_decoder
    # open_clip leaves it as the memory was.
    torch.nn.init.normal_(decoder.text_projection, std=decoder.width**-0.5)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * noise)
    model.logit_scale.fill_(2.0)
    return model


@torch.no_grad()
def main(values: dict[str, Any], rows: list[list[int]], folder: Path, *, noise: float) -> None:
    length, size = values["text_cfg"]["context_length"], values["vision_cfg"]["image_size"]
    model = random_model(values, noise=noise)
    text = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    image = torch.randn(len(rows), 3, size, size)
    found = model(image, text, output_labels=False)
    expected = {"image": image, "text": text, "logits": found["logits"]}
    expected |= {"image_features": found["image_features"], "text_features": found["text_features"]}
    model.text.correct_cls_mask = True
    expected["text_correct"] = model.encode_text(text)
    open_clip.model.set_model_preprocess_cfg(model, PREPROCESS)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_file(expected, folder / "expected.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", model_config=values)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        for name, values in TINY.items():
            main(values, TINY_TEXT, Path(__file__).parent / name, noise=0.2)
    else:
        main(open_clip.get_model_config(sys.argv[1]), CLIP_TEXT, Path(sys.argv[2]), noise=0.02)
