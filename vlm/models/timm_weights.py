"""timm's weights for the image tower, from its hub or from a file, under the facts they were trained with."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from vlm.errors import CheckpointError, ConfigError
from vlm.models.activation import activations
from vlm.models.positions import resized_grid
from vlm.models.spec import ImageTowerSpec
from vlm.models.state_dict import read_state_dict, require_fit

log = logging.getLogger(__name__)

_FILES = ("model.safetensors", "pytorch_model.bin")
_TOLERANCE = 1e-3  # of means and deviations, which are published rounded


def check_hub_weights(
    trunk: nn.Module, native: nn.Module, spec: ImageTowerSpec, *, resize_positions: bool
) -> None:
    """Compare the spec with what timm says of the weights that it is about to load.

    timm itself resizes positional embeddings, and loads weights of QuickGELU into GELU, without a word.

    Args:
        trunk: the model of the spec, without weights.
        native: the same without `spec.options`: as the weights were trained.

    Raises:
        ConfigError: another activation or normalisation, or positions of another size.
    """
    config = cast(Mapping[str, Any], trunk.pretrained_cfg)
    notes = " ".join(config.get("notes", ()))
    trained = "quick_gelu" if "natively QuickGELU" in notes else activations(native)
    _check_activation(activations(trunk), trained, spec)
    _check_normalisation(config, spec)
    native_size = config["input_size"][-1]
    has_positions = any("pos" in name for name, _ in trunk.named_parameters())
    if native_size != spec.image_size and has_positions and not resize_positions:
        raise ConfigError(
            f"model.image.image_size={spec.image_size}, but the weights of {spec.name} have positional "
            f"embeddings for {native_size}; set one of them, or resize_positions=true"
        )


def load_timm_checkpoint(trunk: nn.Module, spec: ImageTowerSpec, *, resize_positions: bool) -> None:
    """Copy the weights of the file or folder `spec.pretrained` into `trunk`; a classifier is left out.

    Raises:
        ConfigError: there is no such file, or what lies beside it contradicts the spec.
        CheckpointError: the file is damaged or of another model.
    """
    path = _weights_file(Path(str(spec.pretrained)))
    described = path.with_name("config.json")
    if described.is_file():
        _check_description(described, trunk, spec)
    else:
        log.info(
            "%s does not say how its weights were trained; they run with %s, mean %s and std %s",
            path, activations(trunk), list(spec.mean), list(spec.std),
        )  # fmt: skip
    own = trunk.state_dict()
    weights = _without_classifier(read_state_dict(path), trunk, own)
    _fit_positions(weights, own, trunk, path, resize_positions=resize_positions)
    require_fit(own, weights, where=str(path))
    if not next(trunk.parameters()).is_meta:  # a trial, which keeps nothing
        trunk.load_state_dict(weights)


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).is_file()), path / _FILES[0])
    if not path.is_file():
        raise ConfigError(
            f"model.image.pretrained={str(path)!r} does not exist; use true for timm's hub, false for new "
            "weights, or a file or folder of a timm checkpoint"
        )
    return path


def _check_description(path: Path, trunk: nn.Module, spec: ImageTowerSpec) -> None:
    """Compare the spec with the `config.json` that timm writes beside weights for the hub."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name, config = content["architecture"], content.get("pretrained_cfg", content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not the description of a timm model: {error!r}") from error
    if timm.is_model(name):
        with torch.device("meta"):
            trained = activations(timm.create_model(name, num_classes=0, **content.get("model_args", {})))
        _check_activation(activations(trunk), trained, spec)
    _check_normalisation(config, spec)


def _check_activation(built: str, trained: str, spec: ImageTowerSpec) -> None:
    if built != trained:
        raise ConfigError(
            f"the activation of model.image.name={spec.name!r} is {built}, its pretrained weights were "
            f"trained with {trained}; set +model.image.options.act_layer={trained}"
        )


def _check_normalisation(config: Mapping[str, Any], spec: ImageTowerSpec) -> None:
    for name, value in (("mean", spec.mean), ("std", spec.std)):
        trained: Sequence[float] = config.get(name, value)
        if max(abs(a - b) for a, b in zip(value, trained, strict=True)) > _TOLERANCE:
            raise ConfigError(
                f"model.image.{name}={list(value)}, but the pretrained weights of {spec.name} were trained "
                f"with {list(trained)}; set model.image.{name} to that"
            )


def _without_classifier(
    weights: Mapping[str, Tensor], trunk: nn.Module, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    heads = cast(Mapping[str, Any], trunk.pretrained_cfg).get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return {name: v for name, v in weights.items() if name in own or not name.startswith(prefixes)}


def _fit_positions(
    weights: dict[str, Tensor],
    own: Mapping[str, Tensor],
    trunk: nn.Module,
    path: Path,
    *,
    resize_positions: bool,
) -> None:
    """Resize `pos_embed` of `weights` in place where it was asked for."""
    name = "pos_embed"
    if name not in weights or name not in own or weights[name].shape == own[name].shape:
        return
    prefix = int(getattr(trunk, "num_prefix_tokens", 0))
    resized = resized_grid(weights[name], length=own[name].shape[1], num_prefix_tokens=prefix)
    if resized is None or resized.shape != own[name].shape:
        return  # the table of mismatches names it
    if not resize_positions:
        raise ConfigError(
            f"{path} has positional embeddings of shape {tuple(weights[name].shape)}, model.image needs "
            f"{tuple(own[name].shape)}; set model.image.image_size to that of the file, or "
            "resize_positions=true"
        )
    weights[name] = resized
    log.info("positional embeddings of %s resized for model.image.image_size", path)
