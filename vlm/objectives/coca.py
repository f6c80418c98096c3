"""CoCa: captioning beside the contrastive loss."""

import math
from typing import Any, cast

from torch import Tensor

from vlm.errors import ConfigError
from vlm.losses import caption_likelihood, mean_over_tokens
from vlm.objectives.clip import ClipObjective
from vlm.objectives.objective import Encoded
from vlm.types import Batch, ContrastiveModel, GenerativeModel, ImageStates, StepOutput, TextStates


class CocaObjective(ClipObjective):
    """CLIP's loss, and the cost of each caption's tokens given the image and the tokens before.

    With a weight of 0 this is CLIP.

    Args:
        caption_weight: of the mean cost of a token, in nats.

    The others are those of `ClipObjective`.

    Source: arXiv:2205.01917, equation 4.
    """

    def __init__(self, *, caption_weight: float, **contrast: Any) -> None:
        super().__init__(**contrast)
        check_weight("caption_weight", caption_weight)
        self.caption_weight = caption_weight

    @property
    def decoders(self) -> frozenset[str]:
        return frozenset({"text_decoder"} if self.caption_weight else set())

    def encode(self, model: ContrastiveModel, batch: Batch) -> Encoded:
        if not self.decoders:
            return super().encode(model, batch)
        model = cast(GenerativeModel, model)
        image, text = model.image_states(batch["image"]), model.text_states(batch["text"])
        encoded = {"image": image.vector, "text": text.vector, "caption_id": batch["caption_id"]}
        return {**encoded, **self.decode(model, batch, image, text)}

    def decode(self, model: GenerativeModel, batch: Batch, image: ImageStates, text: TextStates) -> Encoded:
        """What the loss needs of the decoders: numbers of each row."""
        return self.captioned(model, batch, image, text) if self.caption_weight else {}

    def captioned(
        self,
        model: GenerativeModel,
        batch: Batch,
        image: ImageStates,
        text: TextStates,
        *,
        keep: Tensor | None = None,
    ) -> Encoded:
        """Cost and length of each caption, read from the patches of `keep`, or from all."""
        logits = model.caption_logits(image, text, keep)
        cost, tokens = caption_likelihood(logits, batch["text"], mask=text.mask)
        return {"caption_cost": cost, "caption_tokens": tokens}

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        output = super().loss(model, encoded)
        terms, weights = dict(output.terms), dict(output.weights)
        if self.caption_weight:
            terms["caption"] = mean_over_tokens(encoded["caption_cost"], encoded["caption_tokens"])
            weights["caption"] = self.caption_weight
        return StepOutput(terms=terms, weights=weights, metrics=output.metrics)


def check_weight(name: str, weight: float) -> None:
    """Raise a ConfigError where a term's weight is none."""
    if not 0 <= weight < math.inf:
        raise ConfigError(f"objective.{name}={weight} must be a number of at least 0")
