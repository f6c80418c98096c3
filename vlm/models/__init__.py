"""Towers, the dual encoder of two of them, and their descriptions as plain data."""

from vlm.models.blocks import blocks_of, recompute, wrap_forward
from vlm.models.cache import Cache
from vlm.models.class_centres import ClassCentres
from vlm.models.cost import TowerCost, tower_costs, tower_flops
from vlm.models.decoders import patchify, unpatchify
from vlm.models.dual_encoder import ENTRANCES, DualEncoder, build_model, described, try_pretrained
from vlm.models.spec import (
    Activation,
    BagOfWordsSpec,
    CausalTextSpec,
    ImageTowerSpec,
    ModelSpec,
    PoolerSpec,
    TextDecoderSpec,
    TextTowerSpec,
    TransformersTextSpec,
)

__all__ = [
    "ENTRANCES",
    "Activation",
    "BagOfWordsSpec",
    "Cache",
    "CausalTextSpec",
    "ClassCentres",
    "DualEncoder",
    "ImageTowerSpec",
    "ModelSpec",
    "PoolerSpec",
    "TextDecoderSpec",
    "TextTowerSpec",
    "TowerCost",
    "TransformersTextSpec",
    "blocks_of",
    "build_model",
    "described",
    "patchify",
    "recompute",
    "tower_costs",
    "tower_flops",
    "try_pretrained",
    "unpatchify",
    "wrap_forward",
]
