"""What open_clip's CoCa has beside CLIP: a class token behind texts, a pooler of image tokens, a decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm.errors import CheckpointError, ConfigError
from vlm.inference.foreign.facts import Facts, require_equal
from vlm.inference.foreign.names import num_layers, renamed
from vlm.models import CausalTextSpec, ModelSpec, PoolerSpec, TextDecoderSpec

DECODER = "multimodal_cfg"
VISION_READ = frozenset({"attentional_pool", "attn_pooler_queries", "attn_pooler_heads"})
TEXT_READ = frozenset({"embed_cls", "correct_cls_mask", "pad_id"})
# The last four say nothing to open_clip either: it takes them from the towers, or has 4 for the ratio.
DECODER_READ = frozenset({"context_length", "width", "heads", "layers"}) | {
    "vocab_size",
    "mlp_ratio",
    "dim_head",
    "n_queries",
}
_HEADS = 8  # where the json is silent
_CONTEXT = 77

_QUERIES = "visual.attn_pool.query"
_RULES = (
    (r"cls_emb", r"text.class_embedding"),
    (r"visual\.attn_pool\.(.+)", r"image_pooler.captions.\1"),
    (
        r"text_decoder\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)",
        r"text_decoder.blocks.\1.own.attn.in_proj.\2",
    ),
    (r"text_decoder\.resblocks\.(\d+)\.(.+)", r"text_decoder.blocks.\1.own.\2"),
    (r"text_decoder\.cross_attn\.(\d+)\.(.+)", r"text_decoder.blocks.\1.cross.\2"),
    (r"text_decoder\.text_projection", r"text_decoder.vocabulary.weight"),
)
_POOLER_RULES = ((r"visual\.ln_post\.(.+)", r"image_pooler.captions.ln_post.\1"),)


def is_coca(weights: Mapping[str, Tensor], config: Mapping[str, Any], facts: Facts) -> bool:
    """Whether these are weights of a CoCa.

    Raises:
        ConfigError: they are, and nothing describes them as that.
        CheckpointError: they are not, and are described as that.
    """
    found = any(name.startswith("text_decoder.") for name in weights)
    if found and DECODER not in config:
        raise ConfigError(
            f"{facts.source} is a CoCa, and no {DECODER} says how many heads its parts have; set "
            "model_config=FILE to its json in open_clip's folder model_configs"
        )
    if not found and DECODER in config:
        raise CheckpointError(f"{facts.source} is described as CoCa by {DECODER}, but has no text_decoder")
    return found


def require_supported(config: Mapping[str, Any], where: str) -> None:
    """Refuse by name what open_clip's CoCa may be, and a model of this project may not.

    Raises:
        CheckpointError: with the key and its value.
    """
    vision, text, decoder = config["vision_cfg"], config["text_cfg"], config[DECODER]
    pool, context = vision.get("attentional_pool", False), text.get("context_length", _CONTEXT)
    for key, found, possible in (
        ("vision_cfg.attentional_pool", pool, bool(pool)),  # texts name poolers of which no weights exist
        ("text_cfg.embed_cls", text.get("embed_cls", False), True),
        ("text_cfg.pad_id", text.get("pad_id", 0), 0),
        (f"{DECODER}.context_length", decoder.get("context_length", _CONTEXT), context),
    ):
        if found != possible:
            raise CheckpointError(
                f"{where}: {key}={found!r} has no counterpart in this project; with "
                f"{str(possible).lower()} it could be imported"
            )


def with_parts(
    spec: ModelSpec, weights: Mapping[str, Tensor], config: Mapping[str, Any], facts: Facts
) -> ModelSpec:
    """The CLIP that `spec` describes with the parts of CoCa."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    pooled = _QUERIES in weights
    require_equal(
        vision.get("attentional_pool", False), pooled, what="vision_cfg.attentional_pool", source=facts.source
    )
    assert isinstance(spec.text, CausalTextSpec)
    return dataclasses.replace(
        spec,
        # The pooler has the norm that a tower without it ends with.
        image=dataclasses.replace(spec.image, options={**spec.image.options, "final_norm": False})
        if pooled
        else spec.image,
        text=dataclasses.replace(
            spec.text, pooling="class" if text.get("correct_cls_mask") else "class_open_clip"
        ),
        image_pooler=_pooler(weights, vision, facts) if pooled else None,
        text_decoder=_decoder(spec.text, weights, config[DECODER], facts),
    )


def with_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What CLIP does not have, by the names of this project."""
    turned = _with_separate_queries(weights)
    turned["text_decoder.text_projection"] = weights["text_decoder.text_projection"].T
    return renamed(turned, _RULES + (_POOLER_RULES if _QUERIES in weights else ()))


def _pooler(weights: Mapping[str, Tensor], vision: Mapping[str, Any], facts: Facts) -> PoolerSpec:
    queries = len(weights[_QUERIES])
    require_equal(
        vision.get("attn_pooler_queries"), queries, what="vision_cfg.attn_pooler_queries", source=facts.source
    )
    return PoolerSpec(kind="shared", queries=queries, heads=vision.get("attn_pooler_heads", _HEADS))


def _decoder(
    text: CausalTextSpec, weights: Mapping[str, Tensor], said: Mapping[str, Any], facts: Facts
) -> TextDecoderSpec:
    found = {
        "layers": num_layers(weights, "text_decoder.resblocks"),
        "width": len(weights["text_decoder.ln_final.weight"]),
    }
    for name, value in found.items():
        require_equal(said.get(name), value, what=f"{DECODER}.{name}", source=facts.source)
    return TextDecoderSpec(
        layers=found["layers"], heads=said.get("heads", _HEADS), activation=text.activation
    )


def _with_separate_queries(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where tokens attend to others, torch keeps all projections in one, or three of different widths."""
    separate = dict(weights)
    for name in weights:
        attention, is_bias, _ = name.partition(".in_proj_bias")
        if not is_bias or not attention.startswith(("visual.attn_pool.", "text_decoder.cross_attn.")):
            continue
        width = len(weights[name]) // 3
        for kind in ("weight", "bias"):
            joined = separate.pop(f"{attention}.in_proj_{kind}", None)
            if joined is None:
                query, *others = (separate.pop(f"{attention}.{part}_proj_{kind}") for part in "qkv")
                key_and_value = torch.cat(others)
            else:
                query, key_and_value = torch.split(joined, [width, 2 * width])
            separate |= {f"{attention}.q_proj.{kind}": query, f"{attention}.kv_proj.{kind}": key_and_value}
    return separate
