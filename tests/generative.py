"""A model with decoders small enough for float64, and rows for it."""

from typing import Any

import torch
from tiny import tiny_tokenizer
from tiny_model import EOT, VOCAB, tiny_mapping
from torch import Tensor

from vlm.data import Preprocess
from vlm.inference import Loaded
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import CocaObjective, SycocaObjective

ROWS, PATCHES = 8, 16
CONTRAST = {
    "implementation": "tiled",
    "group_size": None,
    "max_logit_scale": 100.0,
    "mask_equal_captions": False,
}
PAPER: dict[str, Any] = {
    **CONTRAST,
    "caption_weight": 2.0,
    "reconstruction_weight": 1.0,
    "masked_share": 0.5,
    "masked_by": "attentive",
    "dropped_share": 0.5,
    "dropped_by": "attentive",
    "mask_warmup_steps": 0,
    "visible_from": "reencode",
    "normalise_patches": True,
}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit_tiny_patch16_224"},
    "vit_avg": {"name": "vit_tiny_patch16_224", "class_token": False, "global_pool": "avg"},
    "eva": {"name": "eva02_tiny_patch14_224"},
}


def mapping_of(
    tower: str = "vit", *, pooler: str | None = None, pooling: str = "eot", **changes: Any
) -> dict[str, Any]:
    """A description as plain data, with both decoders."""
    mapping = tiny_mapping(pooling=pooling)
    options = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2} | TOWERS[tower]
    mapping["image"] |= {"name": options.pop("name"), "options": options}
    mapping |= {
        "image_pooler": {"kind": pooler, "queries": 5, "heads": 2} if pooler else None,
        "text_decoder": {"layers": 2, "heads": 2, "activation": "gelu"},
        "image_decoder": {"width": 12, "layers": 2, "heads": 2, "activation": "gelu"},
    }
    return mapping | changes


def model_of(tower: str = "vit", *, seed: int = 0, **changes: Any) -> DualEncoder:
    """Newly initialised, in float64."""
    torch.manual_seed(seed)
    return build_model(ModelSpec.from_mapping(mapping_of(tower, **changes))).double()


def sycoca(**changes: Any) -> SycocaObjective:
    """At the paper's settings but for `changes`."""
    return SycocaObjective(**{**PAPER, **changes})


def coca(**changes: Any) -> CocaObjective:
    """At the paper's settings but for `changes`."""
    return CocaObjective(**{**CONTRAST, "caption_weight": 2.0, **changes})


def batch(rows: int = ROWS, *, seed: int = 3, wordless: bool = True) -> dict[str, Tensor]:
    """Captions of different lengths; the second may be nothing but marks, and has random masks then."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, VOCAB, (rows, 9), generator=generator)
    text[:, 0] = 1
    for row in range(rows):
        text[row, 3 + row % 6] = EOT
    if wordless:
        text[1, 1] = EOT
    return {
        "image": torch.randint(0, 256, (rows, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": text,
        "caption_id": torch.arange(rows),
    }


def writer() -> Loaded:
    """A model with both decoders, random weights and a tokenizer."""
    tokenizer, mapping = tiny_tokenizer(), mapping_of("vit_avg")
    mapping["text"] |= {"context_length": 16, "vocab_size": None, "eot_id": None}
    spec = ModelSpec.from_mapping(mapping)
    spec = spec.with_tokenizer(vocab_size=tokenizer.vocab_size, eot_id=tokenizer.eot_id)
    torch.manual_seed(0)
    preprocess = Preprocess(
        image_size=16, background=(255, 255, 255), resize_mode="squash", interpolation="bilinear"
    )
    return Loaded(build_model(spec).eval(), preprocess, tokenizer)
