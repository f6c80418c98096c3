"""Image towers of other projects as timm's vision transformers."""

from collections.abc import Sequence
from typing import Any, Literal

from vlm.models import ImageTowerSpec

# timm's names by patch size, width, depth and heads; the first also stands for every other shape.
_NAMES = {
    # A norm before the blocks too, epsilon 1e-5, class token.
    "clip": {
        (32, 768, 12, 12): "vit_base_patch32_clip_224",
        (16, 768, 12, 12): "vit_base_patch16_clip_224",
        (14, 1024, 24, 16): "vit_large_patch14_clip_224",
        (14, 1280, 32, 16): "vit_huge_patch14_clip_224",
    },
    # A norm after the blocks only, epsilon 1e-6, attention pooling.
    "siglip": {
        (16, 768, 12, 12): "vit_base_patch16_siglip_224",
        (16, 1024, 24, 16): "vit_large_patch16_siglip_256",
    },
}


def vit(
    family: Literal["clip", "siglip"],
    *,
    image_size: int,
    patch_size: int,
    width: int,
    layers: int,
    heads: int,
    mlp_width: int,
    activation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> ImageTowerSpec:
    """The image tower of CLIP or SigLIP. Its activation is `options.act_layer`; without it, GELU."""
    names = _NAMES[family]
    shape = (patch_size, width, layers, heads)
    options: dict[str, Any] = {}
    if shape not in names:
        options |= dict(zip(("patch_size", "embed_dim", "depth", "num_heads"), shape, strict=True))
    if mlp_width != 4 * width:
        exact = mlp_width % width == 0
        # timm rounds width * ratio down, so the ratio of an uneven width aims at its middle.
        options["mlp_ratio"] = mlp_width / width if exact else (mlp_width + 0.5) / width
    if activation != "gelu":
        options["act_layer"] = activation
    return ImageTowerSpec(
        name=names.get(shape, next(iter(names.values()))),
        image_size=image_size,
        mean=_triple(mean),
        std=_triple(std),
        pretrained=False,
        options=options,
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
