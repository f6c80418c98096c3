"""DeGLA: contrast with hard negatives, in each modality, beside a teacher that remembers the start."""

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor

from vlm.errors import ConfigError
from vlm.losses import (
    HardNegatives,
    Implementation,
    grounded_contrast,
    negatives_of_other_anchors,
    squared_distance,
)
from vlm.objectives.clip import ClipObjective
from vlm.objectives.objective import Encoded
from vlm.types import Batch, ContrastiveModel, StepOutput


class DeglaObjective(ClipObjective):
    """CLIP's loss with hard negatives; image- and text-grounded contrast; self-distillation.

    A term of weight 0 is not computed, and with hard_negatives=none and all weights 0 this is CLIP. The
    teacher is the average of the weights that `trainer.ema_decay` keeps.

    Args:
        hard_negatives: further columns of each image: the negatives of its `own` caption, those of `all`
            captions of the batch (NegCLIP and the released code), or none.
        image_grounded_weight: of the choice of each image between its caption and that caption's negatives.
        text_grounded_weight: of the choice of each caption between a positive and its negatives.
        text_grounded_positive: what the caption is to stay close to: the teacher's vector of it, or itself.
        text_grounded_negatives: its own, or those of other captions that the released code takes in their
            place (`repo_compat`).
        text_grounded_scale: multiplier on cosine similarity there, as a constant.
        distillation_weight: of the squared distance of all vectors of a pair from the teacher's, as a mean
            over pairs; the paper's 0.005 is of a sum over 256 pairs, here 1.28.

    The others are those of `ClipObjective`.

    Source: arXiv:2504.16801, equations 1 to 10; hard_negatives=all: arXiv:2210.01936.
    """

    def __init__(
        self,
        *,
        implementation: Literal["auto"] | Implementation,
        group_size: int | Literal["node"] | None,
        max_logit_scale: float,
        mask_equal_captions: bool,
        hard_negatives: Literal["none", "own", "all"],
        image_grounded_weight: float,
        text_grounded_weight: float,
        text_grounded_positive: Literal["teacher", "self"],
        text_grounded_negatives: Literal["own", "repo_compat"],
        text_grounded_scale: float,
        distillation_weight: float,
    ) -> None:
        super().__init__(
            implementation=implementation,
            group_size=group_size,
            max_logit_scale=max_logit_scale,
            mask_equal_captions=mask_equal_captions,
        )
        self.weights = {
            "igc": image_grounded_weight,
            "tgc": text_grounded_weight,
            "distillation": distillation_weight,
        }
        terms = ("image_grounded", "text_grounded", "distillation")
        for name, weight in zip(terms, self.weights.values(), strict=True):
            if not 0 <= weight < math.inf:
                raise ConfigError(f"objective.{name}_weight={weight} must be a number of at least 0")
        if not 0 < text_grounded_scale < math.inf:
            raise ConfigError(f"objective.text_grounded_scale={text_grounded_scale} must be positive")
        self.hard_negatives = hard_negatives
        self.text_grounded_positive = text_grounded_positive
        self.text_grounded_negatives = text_grounded_negatives
        self.text_grounded_scale = text_grounded_scale
        if self.needs_negatives:
            self.required_keys = self.required_keys | {"negative_text", "negative_mask"}

    @property
    def needs_negatives(self) -> bool:
        """Whether a term is about hard negatives; distillation takes them where a batch has some."""
        return self.hard_negatives != "none" or bool(self.weights["igc"] or self.weights["tgc"])

    @property
    def takes_negatives(self) -> bool:
        return self.needs_negatives or self.weights["distillation"] > 0

    @property
    def needs_teacher(self) -> bool:
        taught = self.weights["tgc"] and self.text_grounded_positive == "teacher"
        return bool(self.weights["distillation"] or taught)

    def chance_losses(self, global_batch_size: int) -> Mapping[str, float]:
        return {} if self.hard_negatives == "all" else super().chance_losses(global_batch_size)

    def hard_columns(self, negatives: int) -> int:
        return negatives if self.hard_negatives == "all" else 0

    def encode(self, model: ContrastiveModel, batch: Batch) -> Encoded:
        encoded = dict(super().encode(model, self._with_all_texts(batch)))
        if not self._takes_negatives(batch):
            return encoded
        encoded["text"], encoded["negative"] = _apart(encoded["text"], batch)
        return {**encoded, "negative_mask": batch["negative_mask"]}

    def teach(self, teacher: ContrastiveModel, batch: Batch) -> Encoded:
        if not self.needs_teacher:
            return {}
        if not self.weights["distillation"]:
            return {"teacher_text": teacher.encode_text(batch["text"])}
        text = teacher.encode_text(self._with_all_texts(batch)["text"])
        taught = {"teacher_image": teacher.encode_image(batch["image"]), "teacher_text": text}
        if self._takes_negatives(batch):
            taught["teacher_text"], taught["teacher_negative"] = _apart(text, batch)
        return taught

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        negatives, present = encoded.get("negative"), encoded.get("negative_mask")
        output = self.base_loss(model, encoded, self._hard(negatives, present))
        terms, metrics = dict(output.terms), dict(output.metrics)
        if negatives is not None and present is not None:
            metrics |= _won(encoded["image"], encoded["text"], negatives, present)
            if self.weights["igc"]:
                terms["igc"] = self._image_grounded(model, encoded)
            if self.weights["tgc"]:
                terms["tgc"] = self._text_grounded(encoded)
        if self.weights["distillation"]:
            terms["distillation"] = _distillation(encoded)
        return StepOutput(
            terms=terms, weights={"itc": 1.0, **{n: w for n, w in self.weights.items() if w}}, metrics=metrics
        )

    def _takes_negatives(self, batch: Batch) -> bool:
        return self.takes_negatives and "negative_text" in batch

    def _with_all_texts(self, batch: Batch) -> Batch:
        """The captions, and after them their negatives: one pass through the tower."""
        if not self._takes_negatives(batch):
            return batch
        texts = torch.cat([batch["text"], batch["negative_text"].flatten(0, 1)])
        return cast(Batch, {**batch, "text": texts})

    def _hard(self, negatives: Tensor | None, present: Tensor | None) -> HardNegatives | None:
        if self.hard_negatives == "none" or negatives is None or present is None:
            return None
        return HardNegatives(text=negatives, present=present, scope=self.hard_negatives)

    def _image_grounded(self, model: ContrastiveModel, encoded: Encoded) -> Tensor:
        return grounded_contrast(
            encoded["image"],
            encoded["text"],
            encoded["negative"],
            present=encoded["negative_mask"],
            scale=model.logit_scale.exp(),
        )

    def _text_grounded(self, encoded: Encoded) -> Tensor:
        negatives, present = encoded["negative"], encoded["negative_mask"]
        if self.text_grounded_negatives == "repo_compat":
            negatives, present = negatives_of_other_anchors(negatives, present, group=self.group)
        positive = "text" if self.text_grounded_positive == "self" else "teacher_text"
        return grounded_contrast(
            encoded["text"], encoded[positive], negatives, present=present, scale=self.text_grounded_scale
        )


def _apart(texts: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Vectors of the captions, and those of their negatives."""
    rows, count = batch["negative_mask"].shape
    return texts[:rows], texts[rows:].view(rows, count, -1)


def _distillation(encoded: Encoded) -> Tensor:
    """Over the vectors of a pair: of its image, of its caption, of the negatives that it has."""
    distance = squared_distance(encoded["image"], encoded["teacher_image"])
    distance = distance + squared_distance(encoded["text"], encoded["teacher_text"])
    if "negative" not in encoded:
        return distance
    return distance + squared_distance(
        encoded["negative"], encoded["teacher_negative"], present=encoded["negative_mask"]
    )


@torch.no_grad()
def _won(image: Tensor, text: Tensor, negatives: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Share of the negatives that are there, and of those to which an image prefers its caption."""
    margin = (image * text).sum(1, keepdim=True) - torch.einsum("bd,bkd->bk", image, negatives)
    won = (margin > 0) & present
    return {
        "hard_negatives": present.float().mean(),
        "hard_negatives_won": won.sum() / present.sum().clamp(min=1),
    }
