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
from vlm.models.cache import Cache
from vlm.models.decoders import ImageDecoder, TextDecoder, patchify
from vlm.models.image_tower import TimmTower
from vlm.models.pooler import ImagePooler
from vlm.models.spec import BagOfWordsSpec, CausalTextSpec, ModelSpec, TextTowerSpec, TransformersTextSpec
from vlm.models.text_tower import BagOfWords, CausalTransformer, TextTower
from vlm.types import ImageStates, TextStates, rows_at

ENTRANCES = (
    "encode_image",
    "encode_text",
    "image_states",
    "visible_patches",
    "text_states",
    "caption_logits",
    "next_logits",
    "reconstruct",
)
"""Methods of the model that need its weights."""


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
        self.image = TimmTower(
            spec.image,
            tokens=bool(spec.image_pooler or spec.text_decoder or spec.image_decoder),
            pools=spec.image_pooler is None,
            resize_positions=resize_positions,
        )
        self.text = None if spec.text is None else _build_text_tower(spec.text)
        image_spec = dataclasses.replace(spec.image, pretrained=False)
        built = None if self.text is None else self.text.spec
        self.spec = dataclasses.replace(spec, image=image_spec, text=built)
        self.image_pooler = _pooler(self.image, spec)
        pooled = self.image.width if self.image_pooler is None else spec.embed_dim
        self.image_projection = _projection(pooled, spec.embed_dim)
        self.text_projection = None if self.text is None else _projection(self.text.width, spec.embed_dim)
        bias = spec.init_logit_bias
        # One element, not zero dimensions: DeepSpeed's broadcast and FSDP2 refuse the latter.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(spec.init_logit_scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.full((1,), bias))
        self.text_decoder = _text_decoder(self, spec)
        self.image_decoder = _image_decoder(self, spec)

    def towers(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """`image`, and `text` where there is one: each with its projection."""
        towers: dict[str, tuple[nn.Module, nn.Module]] = {"image": (self.image, self.image_projection)}
        if self.text is not None and self.text_projection is not None:
            towers["text"] = (self.text, self.text_projection)
        return towers

    def side(self, name: str) -> tuple[nn.Module, ...]:
        """All that makes the vectors of images, or of texts: the tower, and what follows it."""
        pooler = self.image_pooler if name == "image" else None
        return (*self.towers()[name], *([] if pooler is None else [pooler]))

    def parts(self) -> dict[str, nn.Module]:
        """The towers without their projections, and the decoders."""
        decoders = {"text_decoder": self.text_decoder, "image_decoder": self.image_decoder}
        towers = {name: tower for name, (tower, _) in self.towers().items()}
        return towers | {name: decoder for name, decoder in decoders.items() if decoder is not None}

    def encode_image(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b d"]:
        """Unit vectors of images, given as bytes or already normalised."""
        if self.image_pooler is None:
            return _unit_length(self.image_projection(self.image(image)))
        features = self.image(image, tokens=True)
        vector, _ = self.image_pooler(torch.cat([features.prefix, features.patches], dim=1))
        return _unit_length(self.image_projection(vector))

    def encode_text(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts; what follows a row's first end-of-text token is not read.

        Raises:
            ConfigError: l exceeds the context length, or there is no text tower.
        """
        if self.text is None or self.text_projection is None:
            raise ConfigError("the model has no text tower (model.text=null): it knows images alone")
        return _unit_length(self.text_projection(self.text(text)))

    def image_states(self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> ImageStates:
        """Vectors of images and what decoders look at; of a model with decoders or a pooler."""
        vector, prefix, patches, each = self.image(image, tokens=True)
        memory = patches
        if self.image_pooler is not None:
            vector, memory = self.image_pooler(torch.cat([prefix, patches], dim=1))
            with torch.no_grad():
                each = self.image_pooler.each_pooled(each)
        with torch.no_grad():
            each = _unit_length(self.image_projection(each))
        return ImageStates(_unit_length(self.image_projection(vector)), prefix, patches, memory, each)

    def visible_patches(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"], keep: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k e"]:
        """Tokens of these patches from a tower that sees no others."""
        return self.image(image, keep=keep, tokens=True).patches  # type: ignore[no-any-return]

    def text_states(self, text: Int64[Tensor, "b l"]) -> TextStates:
        """Vectors of texts and what decoders look at; raises as `encode_text`."""
        assert self.text is not None  # a decoder is refused without
        assert self.text_projection is not None
        vector, states, each, mask = self.text(text, states=True)
        with torch.no_grad():
            each = _unit_length(self.text_projection(each))
        return TextStates(_unit_length(self.text_projection(vector)), states, mask, each)

    def caption_logits(
        self, image: ImageStates, text: TextStates, keep: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b l v"]:
        """Logits of the token after each of a text.

        Args:
            keep: the patches that are looked at; None: all.
        """
        memory = image.memory if keep is None else self._memory_of(image, keep)
        return self._decoder("text_decoder")(text.states, memory)  # type: ignore[no-any-return]

    def next_logits(
        self, text: Int64[Tensor, "b l"], memory: Float[Tensor, "b m f"], cache: Cache
    ) -> Float[Tensor, "b v"]:
        """Logits of the token after `text`, which goes on with what `cache` knows.

        Args:
            memory: of `image_states`, always the same for a cache.
        """
        assert self.text is not None
        logits = self._decoder("text_decoder")(self.text(text, cache=cache), memory, cache=cache)
        cache.advance(text.shape[1])
        return logits[:, -1]  # type: ignore[no-any-return]

    def reconstruct(
        self,
        visible: Float[Tensor, "b k e"],
        places: Int64[Tensor, "b k"],
        hidden: Int64[Tensor, "b h"],
        text: TextStates,
    ) -> Float[Tensor, "b h p"]:
        """Pixels of hidden patches, as `patch_pixels` has them, from those that are visible at `places`."""
        decoder = self._decoder("image_decoder")
        return decoder(visible, places, hidden, text.states, text.mask)  # type: ignore[no-any-return]

    def patch_pixels(
        self, image: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b n p"]:
        """Normalised pixels of each patch, p = 3 * size * size."""
        return patchify(self.image.normalised(image), self.image.patches.size)

    def _memory_of(self, image: ImageStates, keep: Tensor) -> Tensor:
        patches = rows_at(image.patches, keep)
        if self.image_pooler is None:
            return patches
        _, memory = self.image_pooler(torch.cat([image.prefix, patches], dim=1))
        return memory  # type: ignore[no-any-return]

    def _decoder(self, name: str) -> nn.Module:
        decoder = self.parts().get(name)
        if decoder is None:
            raise ConfigError(f"the model has no decoder for this (model.{name}=null)")
        return decoder


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
            TimmTower(spec.image, pools=spec.image_pooler is None, resize_positions=resize_positions)


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


def _pooler(image: TimmTower, spec: ModelSpec) -> ImagePooler | None:
    if spec.image_pooler is None:
        return None
    return ImagePooler(spec.image_pooler, width=spec.embed_dim, memory_width=image.width)


def _text_decoder(model: DualEncoder, spec: ModelSpec) -> TextDecoder | None:
    if spec.text_decoder is None or model.text is None:
        return None
    return TextDecoder(
        spec.text_decoder,
        width=model.text.width,
        memory_width=model.image.patches.width if model.image_pooler is None else spec.embed_dim,
        vocab_size=model.text.vocab_size,
    )


def _image_decoder(model: DualEncoder, spec: ModelSpec) -> ImageDecoder | None:
    if spec.image_decoder is None or model.text is None:
        return None
    model.image.patches.check_square(spec.image)
    return ImageDecoder(spec.image_decoder, patches=model.image.patches, text_width=model.text.width)


def _projection(width: int, embed_dim: int) -> nn.Linear:
    linear = nn.Linear(width, embed_dim, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def _unit_length(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    # Half precision would leave lengths a percent off 1, which the logit scale multiplies.
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
