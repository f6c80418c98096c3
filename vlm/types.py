"""The few types that every layer shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from vlm.broken import BrokenSample


class Batch(TypedDict, total=False):
    """One rank's share of a global batch; row i of every entry belongs to sample i.

    Images stay bytes until they are on the device: a quarter of the traffic, and the tower normalises
    them with the mean and deviation that stand in its own description.
    """

    key: list[str]
    """Shard and member of each sample, for messages."""
    image: UInt8[Tensor, "b 3 h w"]
    text: Int64[Tensor, "b l"]
    """Token ids, l = longest caption of these rows, padded on the right."""
    caption_id: Int64[Tensor, " b"]
    """Fingerprint of the caption: equal for equal captions, on every rank."""
    label: Int64[Tensor, "b m"]
    """Class or cluster numbers, the best first; -1 on the right where a sample has fewer, or none."""
    negative_text: Int64[Tensor, "b k l"]
    """Token ids of texts that resemble the caption and are wrong for the image."""
    negative_mask: Bool[Tensor, "b k"]
    """False where a caption has fewer than k of them."""
    broken: list[BrokenSample]
    """The samples whose places in these rows others took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """The named scalars of one step; their weighted sum is what is differentiated."""

    terms: Mapping[str, Tensor]
    weights: Mapping[str, float]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.terms.keys() != self.weights.keys():
            raise ValueError(f"terms {sorted(self.terms)} and weights {sorted(self.weights)} differ")

    @property
    def total(self) -> Tensor:
        """Weighted sum of the terms, a scalar."""
        parts = [self.weights[name] * term for name, term in self.terms.items()]
        return sum(parts[1:], start=parts[0])


class ImageStates(NamedTuple):
    """What a model makes of images."""

    vector: Float[Tensor, "b d"]
    """Unit vectors."""
    prefix: Float[Tensor, "b p e"]
    """Tokens that stand for no place; p may be 0."""
    patches: Float[Tensor, "b n e"]
    memory: Float[Tensor, "b m f"]
    """What captions are read from: the patches, or mixtures of all tokens."""
    each: Float[Tensor, "b n d"]
    """Unit vectors of images that would be one patch alone, without gradient."""


class TextStates(NamedTuple):
    """What a model makes of texts."""

    vector: Float[Tensor, "b d"]
    """Unit vectors."""
    states: Float[Tensor, "b l e"]
    """Of each token, knowing those before it alone."""
    mask: Bool[Tensor, "b l"]
    """True up to and including the end of text."""
    each: Float[Tensor, "b l d"]
    """Unit vectors of texts that would end at this token, without gradient."""


@runtime_checkable
class ContrastiveModel(Protocol):
    """What an objective may ask of a model."""

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def encode_image(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def encode_text(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]: ...


@runtime_checkable
class GenerativeModel(ContrastiveModel, Protocol):
    """What an objective may ask of a model with decoders."""

    def image_states(self, image: UInt8[Tensor, "b 3 h w"]) -> ImageStates: ...

    def visible_patches(
        self, image: UInt8[Tensor, "b 3 h w"], keep: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k e"]: ...

    def text_states(self, text: Int64[Tensor, "b l"]) -> TextStates: ...

    def caption_logits(
        self, image: ImageStates, text: TextStates, keep: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b l v"]: ...

    def reconstruct(
        self,
        visible: Float[Tensor, "b k e"],
        places: Int64[Tensor, "b k"],
        hidden: Int64[Tensor, "b h"],
        text: TextStates,
    ) -> Float[Tensor, "b h p"]: ...

    def patch_pixels(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n p"]: ...


def rows_at(rows: Float[Tensor, "b n e"], places: Int64[Tensor, "b k"]) -> Float[Tensor, "b k e"]:
    """Of each sample the rows at these places."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))
