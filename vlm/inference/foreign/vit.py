"""Image towers of other projects as timm's vision transformers."""

from collections.abc import Sequence
from typing import Any

from vlm.models import ImageTowerSpec

# By patch size, width, depth and heads. A norm before the blocks too, epsilon 1e-5, class token.
_CLIP = {
    (32, 768, 12, 12): "vit_base_patch32_clip_224",
    (16, 768, 12, 12): "vit_base_patch16_clip_224",
    (14, 1024, 24, 16): "vit_large_patch14_clip_224",
    (14, 1280, 32, 16): "vit_huge_patch14_clip_224",
}
# A norm after the blocks only, epsilon 1e-6, attention pooling.
_SIGLIP = {
    (16, 768, 12, 12): "vit_base_patch16_siglip_224",
    (16, 1024, 24, 16): "vit_large_patch16_siglip_256",
}


def clip_vit(
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
    """The image tower of CLIP. Its activation is `options.act_layer`, without which it is GELU."""
    shape = (patch_size, width, layers, heads)
    return _spec(_CLIP, "vit_base_patch32_clip_224", shape, image_size, mlp_width, activation, (mean, std))


def siglip_vit(
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
    """The image tower of SigLIP."""
    shape = (patch_size, width, layers, heads)
    return _spec(
        _SIGLIP, "vit_base_patch16_siglip_224", shape, image_size, mlp_width, activation, (mean, std)
    )


def _spec(
    names: dict[tuple[int, int, int, int], str],
    general: str,
    shape: tuple[int, int, int, int],
    image_size: int,
    mlp_width: int,
    activation: str,
    normalisation: tuple[Sequence[float], Sequence[float]],
) -> ImageTowerSpec:
    width = shape[1]
    options: dict[str, Any] = {}
    if shape not in names:
        options |= dict(zip(("patch_size", "embed_dim", "depth", "num_heads"), shape, strict=True))
    if mlp_width != 4 * width:
        exact = mlp_width % width == 0
        # timm rounds width * ratio down, so the ratio of an uneven width aims at its middle.
        options["mlp_ratio"] = mlp_width / width if exact else (mlp_width + 0.5) / width
    if activation != "gelu":
        options["act_layer"] = activation
    mean, std = ((float(v[0]), float(v[1]), float(v[2])) for v in normalisation)
    return ImageTowerSpec(
        name=names.get(shape, general),
        image_size=image_size,
        mean=mean,
        std=std,
        pretrained=False,
        options=options,
    )
