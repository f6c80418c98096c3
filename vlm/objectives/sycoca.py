"""SyCoCa: beside CoCa, patches that the caption is about are rebuilt from the others and from it."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from vlm.errors import ConfigError
from vlm.losses import MaskBy, caption_scores, divide, patch_error, words_of
from vlm.objectives.coca import CocaObjective, check_weight
from vlm.objectives.objective import Encoded
from vlm.types import Batch, ContrastiveModel, GenerativeModel, ImageStates, StepOutput, TextStates, rows_at


class SycocaObjective(CocaObjective):
    """CoCa's loss, with captions read from the patches that they are about, and text-guided masked images.

    With reconstruction_weight=0 and dropped_share=0 this is CoCa.

    Args:
        reconstruction_weight: of the mean squared error of rebuilt patches.
        masked_share: of the patches, which are hidden and rebuilt.
        masked_by: whether these are those that the caption is about most, any, or those least.
        dropped_share: of the patches, which captions are not read from.
        dropped_by: which these are; attentive: those that the caption is about least.
        mask_warmup_steps: steps in which both are any, as long as what a caption is about is not known.
        visible_from: the tokens of visible patches: of a second pass of the tower that sees them alone
            (`reencode`), or of the first (`reuse`), where they know what is hidden.
        normalise_patches: rebuild each patch up to its brightness and contrast.

    The others are those of `CocaObjective`.

    Source: arXiv:2401.02137, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        *,
        reconstruction_weight: float,
        masked_share: float,
        masked_by: MaskBy,
        dropped_share: float,
        dropped_by: Literal["attentive", "random"],
        mask_warmup_steps: int,
        visible_from: Literal["reencode", "reuse"],
        normalise_patches: bool,
        **coca: Any,
    ) -> None:
        super().__init__(**coca)
        check_weight("reconstruction_weight", reconstruction_weight)
        if not 0 < masked_share < 1:
            raise ConfigError(f"objective.masked_share={masked_share} must be above 0 and below 1")
        if not 0 <= dropped_share < 1:
            raise ConfigError(f"objective.dropped_share={dropped_share} must be at least 0 and below 1")
        if mask_warmup_steps < 0:
            raise ConfigError(f"objective.mask_warmup_steps={mask_warmup_steps} must be at least 0")
        self.reconstruction_weight = reconstruction_weight
        self.masked_share = masked_share
        self.masked_by = masked_by
        self.dropped_share = dropped_share
        self.dropped_by = dropped_by
        self.mask_warmup_steps = mask_warmup_steps
        self.visible_from = visible_from
        self.normalise_patches = normalise_patches
        self._warming_up = False

    @property
    def decoders(self) -> frozenset[str]:
        return super().decoders | ({"image_decoder"} if self.reconstruction_weight else set())

    def before_step(self, step: int) -> None:
        self._warming_up = step < self.mask_warmup_steps

    def chance_losses(self, global_batch_size: int) -> Mapping[str, float]:
        # Whoever guesses grey is wrong by the variance, which is 1.
        known = {"reconstruction": 1.0} if self.reconstruction_weight and self.normalise_patches else {}
        return {**super().chance_losses(global_batch_size), **known}

    def decode(self, model: GenerativeModel, batch: Batch, image: ImageStates, text: TextStates) -> Encoded:
        if not (self.reconstruction_weight or self.dropped_share):
            return super().decode(model, batch, image, text)
        scores = caption_scores(image.each, text.each, words=words_of(text.mask))
        encoded: dict[str, Tensor] = {}
        if self.caption_weight:
            encoded |= self.captioned(model, batch, image, text, keep=self._kept(scores))
        if self.reconstruction_weight:
            encoded["reconstruction"] = self._rebuilt(model, batch, image, text, scores)
        return encoded

    def _kept(self, scores: Tensor) -> Tensor | None:
        """The patches that captions are read from."""
        if not self.dropped_share:
            return None
        random = self._warming_up or self.dropped_by == "random"
        keep, _ = divide(scores, self.dropped_share, by="random" if random else "low")
        return keep

    def _rebuilt(
        self, model: GenerativeModel, batch: Batch, image: ImageStates, text: TextStates, scores: Tensor
    ) -> Tensor:
        """The error of each row."""
        by = "random" if self._warming_up else self.masked_by
        visible, hidden = divide(scores, self.masked_share, by=by)
        if not hidden.shape[1]:
            raise ConfigError(
                f"objective.masked_share={self.masked_share} of {scores.shape[1]} patches hides none; raise "
                "it, or set objective.reconstruction_weight=0"
            )
        if self.visible_from == "reencode":
            tokens = model.visible_patches(batch["image"], visible)
        else:
            tokens = rows_at(image.patches, visible)
        predicted = model.reconstruct(tokens, visible, hidden, text)
        pixels = rows_at(model.patch_pixels(batch["image"]), hidden)
        return patch_error(predicted, pixels, normalise=self.normalise_patches)

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        output = super().loss(model, encoded)
        if not self.reconstruction_weight:
            return output
        return StepOutput(
            terms={**output.terms, "reconstruction": encoded["reconstruction"].mean()},
            weights={**output.weights, "reconstruction": self.reconstruction_weight},
            metrics=output.metrics,
        )
