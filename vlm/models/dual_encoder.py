"""Two towers, projected to one space."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.errors import ConfigError
from vlm.models.image_tower import TimmTower
from vlm.models.spec import BagOfWordsSpec, CausalTextSpec, ModelSpec, TextTowerSpec, TransformersTextSpec
from vlm.models.text_tower import BagOfWords, CausalTransformer, TextTower


class DualEncoder(nn.Module):
    """An image tower and a text tower whose vectors are compared by their cosine; or the former alone.

    `spec` describes the model as built and needs nothing outside of itself: `build_model(model.spec)` makes
    the same parameters on any machine, with new values. `logit_scale` is the logarithm of the multiplier on
    the cosine, `logit_bias` is added to the product, and None where `spec` has none.

    Args:
        resize_positions: whether pretrained positional embeddings of another size may be resized.

    Source: arXiv:2103.00020, figure 3.
    """

    text: TextTower | None
    text_projection: nn.Linear | None
    logit_bias: nn.Parameter | None

    def __init__(self, spec: ModelSpec, *, resize_positions: bool = False) -> None:
        super().__init__()
        self.image = TimmTower(spec.image, resize_positions=resize_positions)
        self.text = None if spec.text is None else _build_text_tower(spec.text)
        image_spec = dataclasses.replace(spec.image, pretrained=False)
        built = None if self.text is None else self.text.spec
        self.spec = dataclasses.replace(spec, image=image_spec, text=built)
        self.image_projection = _projection(self.image.width, spec.embed_dim)
        self.text_projection = None if self.text is None else _projection(self.text.width, spec.embed_dim)
        bias = spec.init_logit_bias
        # One element, not zero dimensions: DeepSpeed's broadcast and FSDP2 refuse the latter.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(spec.init_logit_scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.full((1,), bias))

    def towers(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """`image`, and `text` where there is one: each with its projection."""
        towers: dict[str, tuple[nn.Module, nn.Module]] = {"image": (self.image, self.image_projection)}
        if self.text is not None and self.text_projection is not None:
            towers["text"] = (self.text, self.text_projection)
        return towers

    def encode_image(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b d"]:
        """Unit vectors of images, given as bytes or already normalised."""
        return _unit_length(self.image_projection(self.image(image)))

    def encode_text(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts; what follows a row's first end-of-text token is not read.

        Raises:
            ConfigError: l exceeds the context length, or there is no text tower.
        """
        if self.text is None or self.text_projection is None:
            raise ConfigError("the model has no text tower (model.text=null): it knows images alone")
        return _unit_length(self.text_projection(self.text(text)))


def build_model(spec: ModelSpec, *, resize_positions: bool = False) -> DualEncoder:
    """Build the model that `spec` describes, on torch's default device, newly initialised or pretrained.

    Args:
        resize_positions: whether pretrained positional embeddings of another size may be resized.

    Raises:
        ConfigError: naming the key that a tower cannot be built from.
        CheckpointError: the file of pretrained weights is damaged or of another model.
    """
    with _sizes_in_words():
        return DualEncoder(spec, resize_positions=resize_positions)


def described(spec: ModelSpec) -> DualEncoder:
    """The model without memory for its weights: its names, shapes and complete description.

    Raises:
        ConfigError: naming the key that a tower cannot be built from.
    """
    with _sizes_in_words(), torch.device("meta"):
        return DualEncoder(spec.without_pretrained())


def try_pretrained(spec: ModelSpec, *, resize_positions: bool) -> None:
    """Read a file of image weights without keeping them, to say at once where it does not fit.

    Raises:
        ConfigError, CheckpointError: as `build_model` does.
    """
    if isinstance(spec.image.pretrained, str):
        with torch.device("meta"):
            TimmTower(spec.image, resize_positions=resize_positions)


@contextmanager
def _sizes_in_words() -> Iterator[None]:
    """What torch says of a size that no memory holds, as an error of the configuration."""
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"the model cannot be built, check the sizes in model.*: {reason}") from error


def _build_text_tower(spec: TextTowerSpec) -> TextTower:
    match spec:
        case CausalTextSpec():
            return CausalTransformer(spec)
        case BagOfWordsSpec():
            return BagOfWords(spec)
        case TransformersTextSpec():
            from vlm.models.transformers_tower import (
                TransformersTower,
            )  # transformers takes seconds to import

            return TransformersTower(spec)


def _projection(width: int, embed_dim: int) -> nn.Linear:
    linear = nn.Linear(width, embed_dim, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def _unit_length(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    # Half precision would leave lengths a percent off 1, which the logit scale multiplies.
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
