"""Any timm model as an image tower."""

import dataclasses
import difflib
from typing import Any, NamedTuple, cast

import timm
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.models.patches import Patches, open_patches
from vlm.models.spec import ImageTowerSpec
from vlm.models.timm_weights import check_hub_weights, load_timm_checkpoint


class ImageFeatures(NamedTuple):
    """An image tower's account of images."""

    vector: Float[Tensor, "b d"] | None
    """None from a tower that does not pool."""
    prefix: Float[Tensor, "b p e"]
    """Tokens that stand for no place, such as a class token; p may be 0."""
    patches: Float[Tensor, "b n e"]
    """Of places, row by row; of those that were kept, in the order in which they were named."""
    each: Float[Tensor, "b n e"]
    """The vector of an image that would be this patch alone, without gradient; the patches of a tower that
    does not pool."""


class TimmTower(nn.Module):
    """A timm model without classifier, fed with bytes.

    Normalising here, on the device, keeps the pixels a quarter as large until then, and the mean and the
    deviation in the model's description.

    Args:
        tokens: whether its patches are asked for too.
        pools: whether it gives a vector; else another part makes one of its tokens.
        resize_positions: whether pretrained positional embeddings of another size may be resized.

    Raises:
        ConfigError: timm does not know the name, refuses an option or cannot take the image size; or
            pretrained weights contradict the spec; or it has no patches that can be asked for.
        CheckpointError: the file of pretrained weights is damaged or of another model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: ImageTowerSpec,
        *,
        tokens: bool = False,
        pools: bool = True,
        resize_positions: bool = False,
    ) -> None:
        super().__init__()
        if not pools:  # nor has it weights then that nothing would train
            spec = dataclasses.replace(spec, options={**spec.options, "global_pool": ""})
        # Convolutions run faster on pixel-major memory (1.5 times for a RegNet on a CPU); a ViT has one only.
        self.trunk = _pretrained(spec, resize_positions).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _check_patches(self.trunk, spec)
        self._patches = open_patches(self.trunk, spec) if tokens else None
        self._pools = pools
        self.width = _feature_width(self, spec) if pools else self.patches.width
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    @property
    def patches(self) -> Patches:
        """What its patches are; of a tower with `tokens`."""
        assert self._patches is not None
        return self._patches

    def forward(
        self,
        image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
        *,
        keep: Int64[Tensor, "b k"] | None = None,
        tokens: bool = False,
    ) -> Float[Tensor, "b d"] | ImageFeatures:
        """One vector an image; a floating-point image is taken as already normalised.

        Args:
            keep: the patches that the tower sees; None: all.
            tokens: whether to give its tokens too.
        """
        image = self.normalised(image).to(next(self.trunk.parameters()).dtype)  # weights may have been cast
        image = image.contiguous(memory_format=torch.channels_last)
        if self._patches is None:
            return cast(Tensor, self.trunk(image))
        with self._patches.kept(keep):
            features = self.trunk(image)
        vector = cast(Tensor, self.trunk.forward_head(features)) if self._pools else None
        if vector is not None and not tokens:
            return vector
        prefix = self._patches.num_prefix
        patches = features[:, prefix:]
        with torch.no_grad():
            # A copy: a compiled tower cannot give two views of the same tokens.
            each = self._patches.each_pooled(patches) if self._pools else patches.detach().clone()
        return ImageFeatures(vector, features[:, :prefix], patches, each)

    def normalised(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Tensor:
        """Bytes as the trunk takes them."""
        if image.is_floating_point():
            return image
        # In place: of small towers, three more copies of the pictures are a noticeable share of the work.
        return image.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)


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


def _feature_width(tower: TimmTower, spec: ImageTowerSpec) -> int:
    """Length of the tower's vector, read off one image, since families name it differently."""
    size = spec.image_size
    image = torch.zeros(1, 3, size, size, device=next(tower.parameters()).device)
    training = tower.training
    try:
        with torch.no_grad():
            features = tower.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.image.name={spec.name!r} cannot take images of model.image.image_size={size}: {error}"
        ) from error
    finally:
        tower.train(training)
    if features.ndim != 2:
        raise ConfigError(
            f"model.image.name={spec.name!r} gives a tensor of shape {tuple(features.shape)} for one image; "
            "a tower has to give one vector"
        )
    return int(features.shape[1])
