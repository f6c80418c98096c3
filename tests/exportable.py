"""Checkpoints of the size of tests that other libraries can hold, or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from foreign_models import randomised
from tiny import save_tiny, tiny_tokenizer
from tiny_model import tiny_mapping

from vlm.data import Preprocess
from vlm.inference import Loaded
from vlm.models import ModelSpec, build_model

CLIP_VIT = {
    "name": "vit_base_patch32_clip_224",
    "image_size": 16,
    "options": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
}
"""CLIP's own vision transformer."""


def checkpoint(
    folder: Path,
    *,
    image: Mapping[str, Any] = {},
    text: Mapping[str, Any] | None = {},
    preprocess: Mapping[str, Any] = {},
    **model: Any,
) -> Path:
    """A CLIP whose tokenizer ends texts with id 2, changed as the arguments say; every weight counts."""
    tokenizer = tiny_tokenizer()
    kind = (text or {}).get("kind", "causal")
    values = tiny_mapping(kind, context_length=tokenizer.context_length, vocab_size=None, eot_id=None)
    values["image"] |= {**CLIP_VIT, **image}
    values["text"] = None if text is None else {**values["text"], **text}
    spec = ModelSpec.from_mapping(values | model)
    if spec.text is not None:
        spec = spec.with_tokenizer(vocab_size=tokenizer.vocab_size, eot_id=tokenizer.eot_id)
    torch.manual_seed(0)
    said = {"background": (255, 255, 255), "resize_mode": "squash", "interpolation": "bilinear", **preprocess}
    loaded = Loaded(
        randomised(build_model(spec)),  # type: ignore[arg-type]
        Preprocess(image_size=spec.image.image_size, **said),
        tokenizer if spec.text is not None else None,
    )
    return save_tiny(folder, loaded=loaded)
