"""The patches of timm's vision transformers: chosen before the first block, given out after the last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.models.spec import ImageTowerSpec
from vlm.types import rows_at


class _Keep(nn.Module):
    """Stands where timm drops patches at random, and keeps those that it is told to."""

    def __init__(self, *, num_prefix: int, with_places: bool) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.with_places = with_places
        self.places: Int64[Tensor, "b k"] | None = None

    def forward(self, x: Float[Tensor, "b n e"]) -> Any:
        if self.places is not None:
            prefix, patches = x[:, : self.num_prefix], x[:, self.num_prefix :]
            x = torch.cat([prefix, rows_at(patches, self.places)], dim=1)
        # Eva turns its positions by what it keeps.
        return (x, self.places) if self.with_places else x


@dataclass(frozen=True)
class Patches:
    """What the patches of a trunk are.

    Args:
        num_prefix: tokens before them.
        size: pixels of a side. grid: patches of a column and of a row. width: of a token.
    """

    trunk: nn.Module
    num_prefix: int
    size: int
    grid: tuple[int, int]
    width: int

    @property
    def count(self) -> int:
        """Of an image."""
        return self.grid[0] * self.grid[1]

    def check_square(self, spec: ImageTowerSpec) -> None:
        """Check that each patch is a square of the image's own pixels, and all together the image.

        Raises:
            ConfigError: as of a tower whose patches are of a convolutional network's features.
        """
        embed: Any = self.trunk.get_submodule("patch_embed")
        sizes = tuple(embed.patch_size)
        covered = tuple(side * self.size for side in self.grid)
        if len(set(sizes)) > 1 or covered != (spec.image_size, spec.image_size):
            raise ConfigError(
                f"model.image.name={spec.name!r} has {self.grid[0]} x {self.grid[1]} patches of {sizes[0]} x "
                f"{sizes[-1]}, which are no squares of its {spec.image_size} pixels that "
                "model.image_decoder could rebuild; take another tower, or set model.image_decoder=null "
                "and objective=coca"
            )

    @contextmanager
    def kept(self, places: Int64[Tensor, "b k"] | None) -> Iterator[None]:
        """Let the trunk see these patches of each image alone; None: all."""
        keep = self.trunk.get_submodule("patch_drop")
        assert isinstance(keep, _Keep)
        keep.places = places
        try:
            yield
        finally:
            keep.places = None

    def each_pooled(self, patches: Float[Tensor, "b n e"]) -> Float[Tensor, "b n d"]:
        """The trunk's vector of an image that would be this patch alone."""
        trunk: Any = self.trunk
        if trunk.attn_pool is not None:
            patches = trunk.attn_pool(patches.reshape(-1, 1, self.width)).reshape(*patches.shape[:2], -1)
        return trunk.fc_norm(patches)  # type: ignore[no-any-return]


def open_patches(trunk: nn.Module, spec: ImageTowerSpec) -> Patches:
    """Change a trunk so that calling it gives all its tokens, and its patches can be chosen.

    Engines hook to that call what gathers a trunk's weights, so there has to be one for everything.

    Raises:
        ConfigError: it has no patches, or drops some at random.
    """
    if not isinstance(trunk, VisionTransformer | Eva):
        raise ConfigError(
            f"model.image.name={spec.name!r} is a {type(trunk).__name__} of timm, without patch tokens that "
            "a decoder or a pooler could look at; take one of the families VisionTransformer and Eva, or set "
            "model.image_pooler, model.text_decoder and model.image_decoder to null"
        )
    if spec.options.get("patch_drop_rate"):
        raise ConfigError(
            f"model.image.options.patch_drop_rate={spec.options['patch_drop_rate']} drops patches that a "
            "decoder is to see; leave it out"
        )
    embed: Any = trunk.patch_embed
    num_prefix = int(trunk.num_prefix_tokens)
    trunk.patch_drop = _Keep(num_prefix=num_prefix, with_places=isinstance(trunk, Eva))  # type: ignore[assignment]
    trunk.forward = trunk.forward_features  # type: ignore[method-assign]
    rows, columns = embed.grid_size
    return Patches(trunk, num_prefix, int(embed.patch_size[0]), (rows, columns), int(trunk.embed_dim))
