"""What folders of `transformers` have in common: weights, preprocessing, names of the layers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vlm.errors import CheckpointError
from vlm.inference.foreign.facts import Facts
from vlm.models import Activation
from vlm.models.state_dict import read_state_dict

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_SETTLED = ("mean", "std", "resize_mode", "interpolation")

IMAGE_LAYERS = (
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)", r"image.trunk.blocks.\1.norm\2.\3"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.(.+)", r"image.trunk.blocks.\1.attn.qkv.\2"),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)",
        r"image.trunk.blocks.\1.attn.proj.\2",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(.+)", r"image.trunk.blocks.\1.mlp.\2"),
    (r"vision_model\.embeddings\.patch_embedding\.(.+)", r"image.trunk.patch_embed.proj.\1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", r"image.trunk.pos_embed"),
    (r"vision_model\.post_layernorm\.(.+)", r"image.trunk.norm.\1"),
)


def read_config(folder: Path, kind: str) -> Any:
    """The configuration of the folder as an object of transformers' own class for `kind`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # takes seconds to import

    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return CONFIG_MAPPING[kind].from_dict(content)
    except Exception as error:  # the classes check their values with errors of their own
        raise CheckpointError(f"{folder / CONFIG} is no configuration of transformers: {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights by name, in one file or in several with an index.

    Raises:
        CheckpointError: a file is missing or unreadable.
    """
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _without_position_ids(read_state_dict(folder / name))
        if index.is_file():
            return _without_position_ids(_parts(folder, index))
    raise CheckpointError(f"{folder} holds neither {' nor '.join(_WEIGHTS)}")


def activation(config: Any, facts: Facts, *, tower: str) -> Activation:
    """The activation of a tower by the project's name."""
    name = config.hidden_act
    if name not in ACTIVATIONS:
        raise CheckpointError(
            f"{facts.source} has hidden_act={name!r} in its {tower}; {', '.join(ACTIVATIONS)} can be imported"
        )
    settled: Activation = facts.settle("activation", ACTIVATIONS[name], of=tower)
    facts.settle("head_width", config.hidden_size // config.num_attention_heads, of=tower)
    return settled


def require_epsilon(config: Any, expected: float, facts: Facts) -> None:
    """The towers of this project have their epsilon built in."""
    if config.layer_norm_eps != expected:
        raise CheckpointError(
            f"{facts.source} has layer_norm_eps={config.layer_norm_eps:g}; "
            f"with {expected:g} it could be imported"
        )


def preprocessing(folder: Path, facts: Facts, *, image_size: int) -> dict[str, Any]:
    """`mean`, `std`, `resize_mode` and `interpolation`, from the folder's image processor and the keys.

    Raises:
        CheckpointError: the processor does what `Preprocess` cannot do.
        ConfigError: neither it nor the keys say all of them.
    """
    said = _processor(folder, image_size=image_size)
    settled = {key: facts.settle(key, said.get(key)) for key in _SETTLED}
    facts.require_all(f"add the preprocessor_config.json of the model to {folder}")
    return settled


def _processor(folder: Path, *, image_size: int) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            values = content.get("image_processor", content)
            if "image_mean" in values:
                return _facts_of(values, path, image_size=image_size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is no image processor: {error!r}") from error
    return {}


def _facts_of(values: Mapping[str, Any], path: Path, *, image_size: int) -> dict[str, Any]:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: {what}; images of {image_size} pixels, cropped from the shortest side or squashed, "
            "normalised by mean and std, can be imported"
        )

    for switch in ("do_resize", "do_rescale", "do_normalize"):
        if not values.get(switch, True):
            raise refuse(f"{switch} is false")
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise refuse(f"rescale_factor is {values['rescale_factor']}")
    size, crop = values["size"], values.get("crop_size")
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    if shortest is not None:
        sides = {crop} if isinstance(crop, int) else set((crop or {}).values())
        if shortest != image_size or sides != {image_size} or not values.get("do_center_crop", True):
            raise refuse(f"size is {size} and crop_size {crop}")
    elif set(size.values()) != {image_size} or values.get("do_center_crop"):
        raise refuse(f"size is {size}")
    return {
        "mean": values["image_mean"],
        "std": values["image_std"],
        "resize_mode": "squash" if shortest is None else "shortest",
        "interpolation": Image.Resampling(values.get("resample", 3)).name.lower(),
    }


def _parts(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights: {error!r}") from error
    weights: dict[str, Tensor] = {}
    for name in sorted(files):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is outside of its folder")
        weights |= read_state_dict(folder / name)
    return weights


def _without_position_ids(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Older files hold the numbers 0, 1, 2, ... that positions are looked up by."""
    return {name: value for name, value in weights.items() if not name.endswith(".position_ids")}


def pad_token(folder: Path) -> str | None:
    """The name of the padding token, where the folder's tokenizer has a description."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            token = json.loads((folder / name).read_text(encoding="utf-8"))["pad_token"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(found, str):
            return found
    return None
