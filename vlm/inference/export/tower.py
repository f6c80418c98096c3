"""Whether an image tower is one of the vision transformers that other libraries have by themselves."""

import dataclasses
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, cast, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vlm.inference.export.source import UnfitError
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
        UnfitError: it is another.
    """
    trunk = plain_trunk(spec)
    if not isinstance(trunk, VisionTransformer):
        raise UnfitError(
            f"the image tower {spec.name} is no vision transformer, but a {type(trunk).__name__} of timm"
        )
    if trunk.global_pool != _POOLING[family]:
        raise UnfitError(
            f"the image tower {spec.name} pools with global_pool={trunk.global_pool}, "
            f"{family.upper()}'s with {_POOLING[family]}"
        )
    block: Any = trunk.blocks[0]
    sizes = Vit(
        image_size=spec.image_size,
        patch_size=int(trunk.patch_embed.patch_size[0]),
        width=int(trunk.embed_dim),
        layers=len(trunk.blocks),
        heads=int(block.attn.num_heads),
        mlp_width=int(block.mlp.fc1.out_features),
        activation=activations(block.mlp),
    )
    if sizes.activation not in get_args(Activation):
        raise UnfitError(f"the activation {sizes.activation} of the image tower {spec.name}")
    own = plain_trunk(vit(family, **dataclasses.asdict(sizes), mean=spec.mean, std=spec.std))
    require_alike(trunk, own, what=f"the image tower {spec.name}", than=f"{family.upper()}'s")
    return sizes


def plain_trunk(spec: ImageTowerSpec) -> nn.Module:
    """The trunk without its weights, and without what only training has."""
    options = {name: value for name, value in spec.options.items() if name not in TRAINING_ALONE}
    with torch.device("meta"):
        tower = TimmTower(dataclasses.replace(spec, options=options, pretrained=False))
    return cast(nn.Module, tower.trunk)


def require_alike(trunk: nn.Module, other: nn.Module, *, what: str, than: str) -> None:
    """Compare the parts of two modules, and the shapes of their weights.

    Raises:
        UnfitError: they differ, with the first difference.
    """
    for one, two in zip_longest(_lines(trunk), _lines(other)):
        if one != two:
            found, expected = one or "nothing", two or "nothing"
            raise UnfitError(f"{what} is another than {than}: it has {found}, the other {expected}")


def _lines(module: nn.Module) -> list[str]:
    shapes = [f"{name} of shape {tuple(value.shape)}" for name, value in module.state_dict().items()]
    return [*(line.strip() for line in str(module).splitlines()), *shapes]
