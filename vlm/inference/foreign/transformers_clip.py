"""`CLIPModel` of transformers."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlm.errors import CheckpointError
from vlm.inference.foreign import transformers_folder as folder_of
from vlm.inference.foreign.facts import Facts, Foreign
from vlm.inference.foreign.names import inverted, renamed, with_joined_qkv, with_separate_qkv
from vlm.inference.foreign.vit import vit
from vlm.models import CausalTextSpec, ModelSpec

_EPSILON = 1e-5
_EOT_BEFORE_IT_WAS_READ = 2  # configurations older than the key: the model then pools at the largest id

_RULES = (
    *folder_of.IMAGE_LAYERS,
    (r"vision_model\.embeddings\.class_embedding", r"image.trunk.cls_token"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"image.trunk.norm_pre.\1"),
    (r"visual_projection\.weight", r"image_projection.weight"),
    (r"text_model\.embeddings\.token_embedding\.weight", r"text.token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", r"text.positional_embedding"),
    (r"text_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)", r"text.blocks.\1.ln_\2.\3"),
    (r"text_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.(.+)", r"text.blocks.\1.attn.in_proj.\2"),
    (r"text_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)", r"text.blocks.\1.attn.out_proj.\2"),
    (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(.+)", r"text.blocks.\1.mlp.c_fc.\2"),
    (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(.+)", r"text.blocks.\1.mlp.c_proj.\2"),
    (r"text_model\.final_layer_norm\.(.+)", r"text.ln_final.\1"),
)


def read(source: Path, facts: Facts) -> Foreign:
    """A folder with `model_type` clip.

    Raises:
        ConfigError: the folder leaves something open, or contradicts the keys.
        CheckpointError: a file is unreadable, or the model has parts that the towers of this project lack.
    """
    config = folder_of.read_config(source, "clip")
    image, text = config.vision_config, config.text_config
    for tower in (image, text):
        folder_of.require_epsilon(tower, _EPSILON, facts)
    if text.intermediate_size != 4 * text.hidden_size:
        raise CheckpointError(
            f"{source} has an MLP of width {text.intermediate_size} in its text tower of width "
            f"{text.hidden_size}; one of four times the width can be imported"
        )
    image_activation = folder_of.activation(image, facts, tower="image tower")
    text_activation = folder_of.activation(text, facts, tower="text tower")
    settled = folder_of.preprocessing(source, facts, image_size=image.image_size)
    weights = folder_of.read_weights(source)
    spec = ModelSpec(
        embed_dim=config.projection_dim,
        init_logit_scale=weights["logit_scale"].exp().item(),
        image=vit(
            "clip",
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
        text=CausalTextSpec(
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            eot_id=None,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            activation=text_activation,
        ),
    )
    return Foreign(
        kind="transformers CLIPModel",
        weights=_converted(weights),
        spec=spec,
        preprocess=facts.preprocess(settled, image_size=image.image_size),
        eot_id="largest" if text.eos_token_id == _EOT_BEFORE_IT_WAS_READ else text.eos_token_id,
        pad_token=None,
    )


def restored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of this project by the names and shapes of `CLIPModel`: the way back of `read`."""
    turned = dict(weights)
    turned["image.trunk.cls_token"] = weights["image.trunk.cls_token"][0, 0]
    turned["image.trunk.pos_embed"] = weights["image.trunk.pos_embed"][0]
    turned["logit_scale"] = weights["logit_scale"].reshape(())
    return with_separate_qkv(renamed(turned, inverted(_RULES)))


def _converted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed_weights = renamed(with_joined_qkv(weights), _RULES)
    renamed_weights["image.trunk.cls_token"] = renamed_weights["image.trunk.cls_token"][None, None]
    renamed_weights["image.trunk.pos_embed"] = renamed_weights["image.trunk.pos_embed"][None]
    renamed_weights["logit_scale"] = renamed_weights["logit_scale"].reshape(1)
    return renamed_weights
