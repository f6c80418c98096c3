"""CLIP and CoCa of open_clip with its own vision transformer, which has the names of the first CLIP."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.errors import CheckpointError, ConfigError
from vlm.inference.foreign import open_clip_coca as coca
from vlm.inference.foreign.facts import Facts, Foreign, require_equal
from vlm.inference.foreign.names import inverted, num_layers, renamed
from vlm.inference.foreign.vit import vit
from vlm.models import CausalTextSpec, ImageTowerSpec, ModelSpec
from vlm.models.state_dict import read_state_dict

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CONFIG_HINT = (
    "model_config=FILE, the json of the model in open_clip's folder model_configs, which says it all"
)

# What open_clip uses where a model's json is silent.
_PREPROCESS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "fill_color": 0,
}
_VISION_READ = frozenset({"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"})
_TEXT_READ = frozenset(
    {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"}
)
# Without effect on features: training only, kinds of output, or parts that another key switches on.
_IRRELEVANT = frozenset(
    {
        "patch_dropout",
        "output_tokens",
        "pad_id",
        "hf_tokenizer_name",
        "tokenizer_mode",
        "timm_model_pretrained",
    }
    | {
        "timm_pool",
        "timm_proj",
        "timm_drop",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "hf_model_pretrained",
    }
    | {"hf_proj_type", "hf_pooler_type"}
)
_NEUTRAL = {"pos_embed_type": "learnable", "block_type": "default", "proj_type": "linear"}
_LEFTOVERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # of the first CLIP's archives

_SCALARS = frozenset({"logit_scale", "logit_bias"})

_BLOCK = r"(weight|bias)"
_RULES = (
    (r"visual\.conv1\.weight", r"image.trunk.patch_embed.proj.weight"),
    (r"visual\.class_embedding", r"image.trunk.cls_token"),
    (r"visual\.positional_embedding", r"image.trunk.pos_embed"),
    (r"visual\.ln_pre\.(.+)", r"image.trunk.norm_pre.\1"),
    (r"visual\.ln_post\.(.+)", r"image.trunk.norm.\1"),
    (r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"image.trunk.blocks.\1.norm\2.\3"),
    (rf"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_{_BLOCK}", r"image.trunk.blocks.\1.attn.qkv.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)", r"image.trunk.blocks.\1.attn.proj.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"image.trunk.blocks.\1.mlp.fc1.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"image.trunk.blocks.\1.mlp.fc2.\2"),
    (r"visual\.proj", r"image_projection.weight"),
    (rf"transformer\.resblocks\.(\d+)\.attn\.in_proj_{_BLOCK}", r"text.blocks.\1.attn.in_proj.\2"),
    (r"transformer\.resblocks\.(.+)", r"text.blocks.\1"),
    (r"(token_embedding\.weight|positional_embedding|ln_final\..+)", r"text.\1"),
    (r"text_projection", r"text_projection.weight"),
)


def read(source: Path, facts: Facts) -> Foreign:
    """A folder of open_clip, or a file of weights.

    Raises:
        ConfigError: the source leaves something open, or contradicts the keys.
        CheckpointError: a file is unreadable, or the model has parts that the towers of this project lack.
    """
    weights = _clip_names(read_state_dict(_weights_file(source)))
    for name in ("visual.conv1.weight", "visual.proj", "text_projection", "token_embedding.weight"):
        if name not in weights:
            raise CheckpointError(
                f"{source} has no {name}: only CLIP and CoCa with open_clip's own vision and text "
                f"transformers can be imported (it has {', '.join(sorted(weights)[:4])}, ...)"
            )
    config, preprocess = _described(source, facts)
    is_coca = coca.is_coca(weights, config, facts)
    settled = _settle(config, preprocess, facts)
    spec = ModelSpec(
        embed_dim=weights["visual.proj"].shape[1],
        init_logit_scale=weights["logit_scale"].exp().item(),
        init_logit_bias=weights["logit_bias"].item() if "logit_bias" in weights else None,
        image=_image_spec(weights, config, settled, facts),
        text=_text_spec(weights, config, settled, facts),
    )
    require_equal(config.get("embed_dim"), spec.embed_dim, what="embed_dim", source=source)
    if is_coca:
        spec, weights = coca.with_parts(spec, weights, config, facts), coca.with_names(weights)
    text = config.get("text_cfg", {})
    return Foreign(
        kind="open_clip CoCa" if is_coca else "open_clip",
        weights=_converted(weights),
        spec=spec,
        preprocess=facts.preprocess(settled, image_size=spec.image.image_size),
        eot_id=text.get("eos_id", 2) if text.get("pool_type") == "eos" else "largest",
        pad_token=None,
    )


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    for name in WEIGHTS:
        if (source / name).is_file():
            return source / name
    raise CheckpointError(f"{source} holds neither {' nor '.join(WEIGHTS)}; give the file of weights itself")


def _clip_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of models built as open_clip's CLIP; its CustomTextCLIP puts the text tower under `text`."""
    named = {name.removeprefix("text."): value for name, value in weights.items()}
    return {name: value for name, value in named.items() if name not in _LEFTOVERS}


def _described(source: Path, facts: Facts) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The model's json and its preprocessing; empty and None for bare weights."""
    path = Path(facts.given.model_config) if facts.given.model_config else source / CONFIG
    if not path.is_file():
        if facts.given.model_config:
            raise ConfigError(f"model_config={str(path)!r} does not exist; it names a json of open_clip")
        return {}, None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content.get("model_cfg", content)
        _require_all_supported(config, str(path))
        return config, _PREPROCESS | content.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no model description of open_clip: {error!r}") from error


def _require_all_supported(config: Mapping[str, Any], where: str) -> None:
    vision, text = _VISION_READ, _TEXT_READ
    if coca.DECODER in config:
        vision, text = vision | coca.VISION_READ, text | coca.TEXT_READ
        _require_supported(config[coca.DECODER], coca.DECODER_READ, f"{where}: {coca.DECODER}")
    _require_supported(config["vision_cfg"], vision, f"{where}: vision_cfg")
    _require_supported(config["text_cfg"], text, f"{where}: text_cfg")
    if coca.DECODER in config:
        coca.require_supported(config, where)


def _require_supported(values: Mapping[str, Any], read: frozenset[str], where: str) -> None:
    for name, value in values.items():
        neutral = value is None or value is False or value == {} or value == _NEUTRAL.get(name)
        if name not in read | _IRRELEVANT and not neutral and (name, value) != ("pool_type", "tok"):
            raise CheckpointError(
                f"{where}.{name}={value!r} has no counterpart in the towers of this project; CLIP and CoCa "
                "with open_clip's own vision and text transformers can be imported"
            )
    if values.get("pool_type", "argmax") not in ("tok", "argmax", "eos"):
        raise CheckpointError(f"{where}.pool_type={values['pool_type']!r} cannot be imported")


def _settle(config: Mapping[str, Any], preprocess: Mapping[str, Any] | None, facts: Facts) -> dict[str, Any]:
    """What shapes do not tell: activation, width of the heads, preprocessing."""
    said = dict(preprocess or {})
    if config:
        said["activation"] = "quick_gelu" if config.get("quick_gelu") else "gelu"
        said["head_width"] = config["vision_cfg"].get("head_width", 64)
    if said.get("resize_mode") == "longest":
        said["background"] = (said["fill_color"],) * 3
    keys = ("activation", "head_width", "mean", "std", "resize_mode", "interpolation")
    settled = {key: facts.settle(key, said.get(key)) for key in keys}
    facts.require_all(_CONFIG_HINT)
    return said | settled


def _image_spec(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], settled: Mapping[str, Any], facts: Facts
) -> ImageTowerSpec:
    width, _, _, patch = weights["visual.conv1.weight"].shape
    grid = math.isqrt(len(weights["visual.positional_embedding"]) - 1)
    found = {
        "image_size": grid * patch,
        "layers": num_layers(weights, "visual.transformer.resblocks"),
        "width": width,
        "patch_size": patch,
    }
    _compare(config.get("vision_cfg", {}), found, "vision_cfg", facts)
    return vit(
        "clip",
        **found,
        heads=_heads(width, settled["head_width"], "image tower"),
        mlp_width=len(weights["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        activation=settled["activation"],
        mean=settled["mean"],
        std=settled["std"],
    )


def _text_spec(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], settled: Mapping[str, Any], facts: Facts
) -> CausalTextSpec:
    vocab_size, width = weights["token_embedding.weight"].shape
    found = {
        # CoCa has a class token behind the text.
        "context_length": len(weights["positional_embedding"]) - (coca.DECODER in config),
        "vocab_size": vocab_size,
        "width": width,
        "layers": num_layers(weights, "transformer.resblocks"),
    }
    text = config.get("text_cfg", {})
    _compare(text, found, "text_cfg", facts)
    heads = text.get("heads", 8) if config else _heads(width, settled["head_width"], "text tower")
    facts.settle("head_width", width // heads, of="text tower")
    return CausalTextSpec(
        context_length=found["context_length"],
        vocab_size=vocab_size,
        eot_id=None,
        width=width,
        layers=found["layers"],
        heads=heads,
        activation=settled["activation"],
    )


def _compare(said: Mapping[str, Any], found: Mapping[str, int], where: str, facts: Facts) -> None:
    for name, value in found.items():
        require_equal(said.get(name), value, what=f"{where}.{name}", source=facts.source)


def _heads(width: int, head_width: int, tower: str) -> int:
    if width % head_width:
        raise ConfigError(f"head_width={head_width} does not divide the width {width} of the {tower}")
    return width // head_width


def restored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of this project by the names and shapes of open_clip's CLIP: the way back of `read`.

    Names that are those of no part of open_clip's own towers stay.
    """
    turned = {name: value.reshape(()) if name in _SCALARS else value for name, value in weights.items()}
    turned["text_projection.weight"] = weights["text_projection.weight"].T
    if "image.trunk.cls_token" in weights:
        turned["image.trunk.cls_token"] = weights["image.trunk.cls_token"][0, 0]
        turned["image.trunk.pos_embed"] = weights["image.trunk.pos_embed"][0]
        turned["image_projection.weight"] = weights["image_projection.weight"].T
    return renamed(turned, inverted(_RULES))


def _converted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip multiplies by its projections from the right, and has no axis for the batch."""
    turned = dict(weights)
    for name in ("visual.proj", "text_projection"):
        turned[name] = weights[name].T
    turned["visual.class_embedding"] = weights["visual.class_embedding"][None, None]
    turned["visual.positional_embedding"] = weights["visual.positional_embedding"][None]
    for name in turned.keys() & _SCALARS:
        turned[name] = weights[name].reshape(1)
    return renamed(turned, _RULES)
