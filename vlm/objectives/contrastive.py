"""What the objectives share whose heart is a contrastive loss over image-text pairs."""

import logging
import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vlm.distributed import Group, Topology, check_group_size, split_ranks
from vlm.errors import ConfigError
from vlm.losses import (
    HardNegatives,
    Implementation,
    Kind,
    LossCost,
    choose_implementation,
    equal_caption_share,
    logits_bytes,
)
from vlm.objectives.objective import Encoded, Objective
from vlm.types import Batch, ContrastiveModel, StepOutput

log = logging.getLogger(__name__)


class ContrastiveObjective(Objective):
    """Image and text of a pair attract, every other pair of the global batch (or of the group's) repels.

    Args:
        implementation: how the loss is computed, see `vlm.losses`; `auto` picks by the memory it would take.
        group_size: ranks whose pairs are each other's negatives: a number, "node" for those of one machine,
            or null for all. With more than one group the loss is the mean of the groups' losses, which is
            another objective than the global one.
        max_logit_scale: the multiplier on cosine similarity is clamped to it after each step.
        mask_equal_captions: pairs with the same caption are no negatives of each other.
    """

    required_keys: frozenset[str] = frozenset({"image", "text", "caption_id"})
    kind: ClassVar[Kind]

    def __init__(
        self,
        *,
        implementation: Literal["auto"] | Implementation,
        group_size: int | Literal["node"] | None,
        max_logit_scale: float,
        mask_equal_captions: bool,
    ) -> None:
        super().__init__()
        if not max_logit_scale >= 1:
            raise ConfigError(
                f"objective.max_logit_scale={max_logit_scale} must be at least 1 (CLIP uses 100)"
            )
        self.implementation = implementation
        self.group_size = group_size
        self.max_logit_scale = max_logit_scale
        self.mask_equal_captions = mask_equal_captions
        self.group = Group.everyone()
        self.num_groups = 1

    def setup(self, topology: Topology) -> None:
        self.group = split_ranks(self.group_size, key="objective.group_size")
        self.num_groups = topology.world_size // self.group.size

    def cost(
        self, *, pairs: int, dim: int, world_size: int, node_size: int, labels: int = 1, negatives: int = 0
    ) -> LossCost:
        members = node_size if self.group_size == "node" else self.group_size
        members = world_size if members is None else members
        check_group_size(members, world_size, key="objective.group_size")
        all_pairs = pairs * members
        hard = self.hard_columns(negatives) * all_pairs
        implementation = self.implementation
        if implementation == "auto":
            implementation = choose_implementation(pairs=pairs, all_pairs=all_pairs, hard=hard)
        sizes = {"pairs": pairs, "all_pairs": all_pairs, "hard": hard}
        return LossCost.of(implementation, kind=self.kind, dim=dim, **sizes)

    def hard_columns(self, negatives: int) -> int:
        """Columns that every image is compared with besides, for each pair of the group that has so many."""
        return 0

    def encode(self, model: ContrastiveModel, batch: Batch) -> Encoded:
        return {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"]),
            "caption_id": batch["caption_id"],
        }

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        return self.base_loss(model, encoded, negatives=None)

    def base_loss(
        self, model: ContrastiveModel, encoded: Encoded, negatives: HardNegatives | None
    ) -> StepOutput:
        """The contrastive term alone, with hard negatives or without."""
        caption_id = encoded["caption_id"] if self.mask_equal_captions else None
        hard = 0 if negatives is None else self.hard_columns(negatives.present.shape[1])
        loss = self.contrast(
            model,
            encoded["image"],
            encoded["text"],
            implementation=self._implementation(len(encoded["image"]), hard=hard),
            caption_id=caption_id,
            negatives=negatives,
            group=self.group,
        )
        metrics = {"logit_scale": model.logit_scale.detach().exp().squeeze()}
        if caption_id is not None:
            metrics["equal_captions"] = equal_caption_share(caption_id, self.group)
        return StepOutput(terms={"itc": loss}, weights={"itc": 1.0}, metrics=metrics)

    def contrast(self, model: ContrastiveModel, image: Tensor, text: Tensor, **how: Any) -> Tensor:
        """The loss of this rank's pairs; `how` are arguments of the functions of `vlm.losses`."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self, model: ContrastiveModel, step: int) -> None:
        model.logit_scale.clamp_(max=math.log(self.max_logit_scale))

    def _implementation(self, pairs: int, *, hard: int) -> Implementation:
        if self.implementation != "auto":
            return self.implementation
        all_pairs = pairs * self.group.size
        sizes = {"pairs": pairs, "all_pairs": all_pairs, "hard": hard * all_pairs}
        self.implementation = choose_implementation(**sizes)
        if Topology.current().is_main:
            log.info(
                "objective.implementation=auto is %s: %d x %d logits a rank take %.0f MiB",
                self.implementation,
                pairs,
                all_pairs + sizes["hard"],
                logits_bytes(self.implementation, **sizes) / 2**20,
            )
        return self.implementation
