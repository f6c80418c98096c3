"""The few types that every layer shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypedDict, runtime_checkable

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


@runtime_checkable
class ContrastiveModel(Protocol):
    """What an objective may ask of a model."""

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def encode_image(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def encode_text(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]: ...
