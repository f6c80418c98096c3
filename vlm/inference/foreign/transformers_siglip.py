"""`SiglipModel` of transformers: its text encoder as it is, its image tower as timm's."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.errors import CheckpointError
from vlm.inference.foreign import transformers_folder as folder_of
from vlm.inference.foreign.facts import Facts, Foreign
from vlm.inference.foreign.names import inverted, renamed, with_joined_qkv, with_separate_qkv
from vlm.inference.foreign.vit import vit
from vlm.models import ModelSpec, TransformersTextSpec

_EPSILON = 1e-6
_TEXT = "siglip_text_model"

_POOL = "image.trunk.attn_pool"
_ATTENTION = "vision_model.head.attention"
_HEAD = "text.encoder.head"
_RULES = (
    *folder_of.IMAGE_LAYERS,
    (r"vision_model\.head\.probe", rf"{_POOL}.latent"),
    (r"vision_model\.head\.attention\.out_proj\.(.+)", rf"{_POOL}.proj.\1"),
    (r"vision_model\.head\.attention\.(q|kv)\.(.+)", rf"{_POOL}.\1.\2"),
    (r"vision_model\.head\.layernorm\.(.+)", rf"{_POOL}.norm.\1"),
    (r"vision_model\.head\.mlp\.(.+)", rf"{_POOL}.mlp.\1"),
    (r"text_model\.(.+)", r"text.encoder.\1"),
)


def read(source: Path, facts: Facts) -> Foreign:
    """A folder with `model_type` siglip, of fixed image size.

    SigLIP projects neither tower's vector, so the projections of this project are the identity.

    Raises:
        ConfigError: the folder leaves something open, or contradicts the keys.
        CheckpointError: a file is unreadable, or the model has parts that the towers of this project lack.
    """
    config = folder_of.read_config(source, "siglip")
    image, text = config.vision_config, config.text_config
    folder_of.require_epsilon(image, _EPSILON, facts)
    if not getattr(image, "vision_use_head", True) or text.projection_size != image.hidden_size:
        raise CheckpointError(
            f"{source} has no attention pooling, or a text vector of {text.projection_size} numbers beside "
            f"an image vector of {image.hidden_size}; it cannot be imported"
        )
    image_activation = folder_of.activation(image, facts, tower="image tower")
    folder_of.activation(text, facts, tower="text tower")
    settled = folder_of.preprocessing(source, facts, image_size=image.image_size)
    weights = folder_of.read_weights(source)
    spec = ModelSpec(
        embed_dim=image.hidden_size,
        init_logit_scale=weights["logit_scale"].exp().item(),
        init_logit_bias=weights["logit_bias"].item(),
        image=vit(
            "siglip",
            image_size=image.image_size,
            patch_size=image.patch_size,
            width=image.hidden_size,
            layers=image.num_hidden_layers,
            heads=image.num_attention_heads,
            mlp_width=image.intermediate_size,
            activation=image_activation,
            mean=settled["mean"],
            std=settled["std"],
        ),
        text=TransformersTextSpec(
            name=_TEXT,
            pretrained=False,
            pooling="last",
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            eot_id=None,
            options={**text.to_diff_dict(), "model_type": _TEXT},
        ),
    )
    return Foreign(
        kind="transformers SiglipModel",
        weights=_converted(weights, width=image.hidden_size),
        spec=spec,
        preprocess=facts.preprocess(settled, image_size=image.image_size),
        eot_id="any",
        pad_token=folder_of.pad_token(source),
    )


def restored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of this project by the names and shapes of `SiglipModel`: the way back of `read`.

    `SiglipModel` has no projections: that of texts becomes a part of the text encoder's head, that of images
    has to be the identity.
    """
    turned = {name: value for name, value in weights.items() if not name.endswith("_projection.weight")}
    for kind in ("weight", "bias"):
        turned[f"{_HEAD}.{kind}"] = weights["text_projection.weight"] @ weights[f"{_HEAD}.{kind}"]
    turned["image.trunk.pos_embed"] = weights["image.trunk.pos_embed"][0]
    separate = with_separate_qkv(renamed(turned, inverted(_RULES)))
    for kind in ("weight", "bias"):
        parts = [separate.pop(f"{_ATTENTION}.{part}.{kind}") for part in ("q", "kv")]
        separate[f"{_ATTENTION}.in_proj_{kind}"] = torch.cat(parts)
    return separate


def _converted(weights: dict[str, Tensor], *, width: int) -> dict[str, Tensor]:
    for kind in ("weight", "bias"):
        query, key_and_value = torch.split(weights.pop(f"{_ATTENTION}.in_proj_{kind}"), [width, 2 * width])
        weights |= {f"{_ATTENTION}.q.{kind}": query, f"{_ATTENTION}.kv.{kind}": key_and_value}
    text = {name: value for name, value in weights.items() if name.startswith("text_model.")}
    rest = {name: value for name, value in weights.items() if name not in text}
    converted = renamed({**with_joined_qkv(rest), **text}, _RULES)
    converted["image.trunk.pos_embed"] = converted["image.trunk.pos_embed"][None]
    for name in ("logit_scale", "logit_bias"):
        converted[name] = converted[name].reshape(1)
    identity = torch.eye(width)
    return converted | {"image_projection.weight": identity, "text_projection.weight": identity.clone()}
