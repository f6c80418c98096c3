"""Whether an image tower is one of the vision transformers that other libraries have by themselves."""

import dataclasses
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vlm.inference.export.source import Unfit
from vlm.inference.foreign.vit import vit
from vlm.models import Activation, ImageTowerSpec
from vlm.models.activation import activations
from vlm.models.image_tower import TimmTower

TRAINING_ALONE = frozenset(
    {"drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
)
"""Options of timm that change nothing once a model is trained."""

_POOLING = {"clip": "token", "siglip": "map"}


@dataclass(frozen=True, kw_only=True)
class Vit:
    """Sizes of a vision transformer, as `vlm.inference.foreign.vit.vit` takes them."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str


def require_vit(spec: ImageTowerSpec, family: Literal["clip", "siglip"]) -> Vit:
    """The sizes of an image tower that an import of this family could have made.

    Raises:
        Unfit: it is another.
    """
    trunk: Any = plain_trunk(spec)
    if not isinstance(trunk, VisionTransformer):
        raise Unfit(f"the image tower {spec.name} is no vision transformer, but a {type(trunk).__name__} of timm")
    if trunk.global_pool != _POOLING[family]:
        raise Unfit(
            f"the image tower {spec.name} pools with global_pool={trunk.global_pool}, {family.upper()}'s with "
            f"{_POOLING[family]}"
        )
    mlp: Any = trunk.blocks[0].mlp
    sizes = Vit(
        image_size=spec.image_size,
        patch_size=int(trunk.patch_embed.patch_size[0]),
        width=int(trunk.embed_dim),
        layers=len(trunk.blocks),
        heads=int(trunk.blocks[0].attn.num_heads),
        mlp_width=int(mlp.fc1.out_features),
        activation=activations(mlp),
    )
    if sizes.activation not in get_args(Activation):
        raise Unfit(f"the activation {sizes.activation} of the image tower {spec.name}")
    own = plain_trunk(vit(family, **dataclasses.asdict(sizes), mean=spec.mean, std=spec.std))
    require_alike(trunk, own, what=f"the image tower {spec.name}", than=f"{family.upper()}'s")
    return sizes


def plain_trunk(spec: ImageTowerSpec) -> nn.Module:
    """The trunk without its weights, and without what only training has."""
    options = {name: value for name, value in spec.options.items() if name not in TRAINING_ALONE}
    with torch.device("meta"):
        return TimmTower(dataclasses.replace(spec, options=options, pretrained=False)).trunk


def require_alike(trunk: nn.Module, other: nn.Module, *, what: str, than: str) -> None:
    """Compare the parts of two modules, and the shapes of their weights.

    Raises:
        Unfit: they differ, with the first difference.
    """
    for one, two in zip_longest(_lines(trunk), _lines(other)):
        if one != two:
            raise Unfit(f"{what} is another than {than}: it has {one or 'nothing'}, the other {two or 'nothing'}")


def _lines(module: nn.Module) -> list[str]:
    shapes = [f"{name} of shape {tuple(value.shape)}" for name, value in module.state_dict().items()]
    return [*(line.strip() for line in str(module).splitlines()), *shapes]
