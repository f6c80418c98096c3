"""Any timm model as an image tower."""

import dataclasses
import difflib
from typing import Any, cast

import timm
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.models.spec import ImageTowerSpec
from vlm.models.timm_weights import check_hub_weights, load_timm_checkpoint


class TimmTower(nn.Module):
    """A timm model without classifier, fed with bytes.

    Normalising here, on the device, keeps the pixels a quarter as large until then, and the mean and the
    deviation in the model's description.

    Args:
        resize_positions: whether pretrained positional embeddings of another size may be resized.

    Raises:
        ConfigError: timm does not know the name, refuses an option or cannot take the image size; or
            pretrained weights contradict the spec.
        CheckpointError: the file of pretrained weights is damaged or of another model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ImageTowerSpec, *, resize_positions: bool = False) -> None:
        super().__init__()
        # Convolutions run faster on pixel-major memory (1.5 times for a RegNet on a CPU); a ViT has one only.
        self.trunk = _pretrained(spec, resize_positions).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _check_patches(self.trunk, spec)
        self.width = _feature_width(self.trunk, spec)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def forward(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """One vector an image; a floating-point image is taken as already normalised."""
        if not image.is_floating_point():
            image = (image.to(self.mean.dtype) / 255 - self.mean) / self.std
        image = image.to(next(self.trunk.parameters()).dtype)  # an engine may have cast the weights alone
        return cast(Tensor, self.trunk(image.contiguous(memory_format=torch.channels_last)))


def _pretrained(spec: ImageTowerSpec, resize_positions: bool) -> nn.Module:
    """The trunk, with timm's weights or those of a file where the spec asks for them."""
    if spec.pretrained is True:
        with torch.device("meta"):
            check_hub_weights(
                _create(spec, pretrained=False),
                _create(dataclasses.replace(spec, options={}), pretrained=False),
                spec,
                resize_positions=resize_positions,
            )
        return _create(spec, pretrained=True)
    trunk = _create(spec, pretrained=False)
    if isinstance(spec.pretrained, str):
        load_timm_checkpoint(trunk, spec, resize_positions=resize_positions)
    return trunk


def _create(spec: ImageTowerSpec, *, pretrained: bool) -> nn.Module:
    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models(), n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ConfigError(f"model.image.name={spec.name!r} is no model of timm {timm.__version__}{hint}")
    try:
        try:
            return _create_timm(spec, pretrained, img_size=spec.image_size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return _create_timm(spec, pretrained)  # fully convolutional families have no such argument
    except Exception as error:
        # timm has no error class of its own: what a family refuses surfaces as any built-in exception.
        raise ConfigError(
            f"timm cannot build model.image.name={spec.name!r} with image_size={spec.image_size}, "
            f"pretrained={str(pretrained).lower()} and model.image.options={dict(spec.options)}: {error}"
        ) from error


def _create_timm(spec: ImageTowerSpec, pretrained: bool, **size: int) -> nn.Module:
    arguments: dict[str, Any] = {**spec.options, **size}
    return timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **arguments)


def _check_patches(trunk: nn.Module, spec: ImageTowerSpec) -> None:
    patch = getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(spec.image_size % side for side in patch):
        raise ConfigError(
            f"model.image.image_size={spec.image_size} is not a multiple of the patch size {patch[0]} of "
            f"{spec.name}, which would not see the rest; change it or model.image.options.patch_size"
        )


def _feature_width(trunk: nn.Module, spec: ImageTowerSpec) -> int:
    """Length of the tower's vector, read off one image, since families name it differently."""
    weight = next(trunk.parameters())
    size = spec.image_size
    image = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
    training = trunk.training
    try:
        with torch.no_grad():
            features = trunk.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.image.name={spec.name!r} cannot take images of model.image.image_size={size}: {error}"
        ) from error
    finally:
        trunk.train(training)
    if features.ndim != 2:
        raise ConfigError(
            f"model.image.name={spec.name!r} gives a tensor of shape {tuple(features.shape)} for one image; "
            "a tower has to give one vector"
        )
    return int(features.shape[1])
