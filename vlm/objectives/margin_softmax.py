"""Glint-MVT's first stage: an image tower learns to tell very many classes apart, found by clustering."""

import logging
import math
from typing import Literal

import torch

from vlm.distributed import Topology, gather_rows
from vlm.errors import ConfigError
from vlm.losses import LossCost, Margin, class_cost, class_logits, margin_softmax, mlcd
from vlm.models import ClassCentres
from vlm.objectives.objective import Encoded, Objective
from vlm.types import Batch, ContrastiveModel, StepOutput

log = logging.getLogger(__name__)

_LOSSES = {"softmax": margin_softmax, "mlcd": mlcd}


class MarginSoftmaxObjective(Objective):
    """Images come near the centres of their own classes, by a margin nearer than to all others.

    Args:
        num_classes: labels are 0 … num_classes - 1.
        embed_dim: of the model.
        loss: `softmax`, of several labels each beside the classes that are not the image's; or `mlcd`.
        scale: multiplier on the cosine.
        m1, m2, m3: the margin, cos(m1·θ + m2) - m3: of SphereFace, ArcFace and CosFace.
        margin_gradient: `straight_through`, as published results were trained, or `exact`.
        sample_rate: share of the classes that take part in a step: those of its images, and others drawn at
            random up to the share. Where its images alone have more, these.
        filter_above: classes whose cosine with an image is above it do not count for it; null: all do.
        num_dims: how many of the dimensions, drawn anew for each step, count; null: all.
        seed: of the first centres.

    Source: arXiv:2203.15565, arXiv:2304.05884, arXiv:2407.17331.
    """

    required_keys: frozenset[str] = frozenset({"image", "label"})

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        loss: Literal["softmax", "mlcd"],
        scale: float,
        m1: float,
        m2: float,
        m3: float,
        margin_gradient: Literal["straight_through", "exact"],
        sample_rate: float,
        filter_above: float | None,
        num_dims: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        _check("num_classes", num_classes, num_classes >= 2, "at least 2")
        _check("scale", scale, scale > 0, "positive")
        _check("m1", m1, m1 >= 1, "at least 1: it multiplies the angle")
        _check("m2", m2, 0 <= m2 < math.pi / 2, "an angle from 0 to 1.57")
        _check("m3", m3, 0 <= m3 < 2, "at least 0 and below 2")
        _check("sample_rate", sample_rate, 0 < sample_rate <= 1, "a share above 0, at most 1")
        _check(
            "filter_above", filter_above, filter_above is None or -1 < filter_above < 1, "a cosine, or null"
        )
        _check(
            "num_dims", num_dims, num_dims is None or 0 < num_dims <= embed_dim, f"1 … {embed_dim}, or null"
        )
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.loss_of = _LOSSES[loss]
        self.scale = float(scale)
        self.margin = Margin(m1=float(m1), m2=float(m2), m3=float(m3), gradient=margin_gradient)
        self.sample_rate = sample_rate
        self.filter_above = filter_above
        self.num_dims = num_dims
        self.seed = seed

    def setup(self, topology: Topology) -> None:
        self.centres = ClassCentres(
            num_classes=self.num_classes, dim=self.embed_dim, seed=self.seed, topology=topology
        )

    def check_classes(self, num_classes: int | None) -> None:
        if num_classes is None or num_classes == self.num_classes:
            return
        said = f"objective.num_classes={self.num_classes}, but data.train.labels name {num_classes} classes"
        if num_classes > self.num_classes:
            raise ConfigError(f"{said}; set it to {num_classes}")
        log.warning("%s: the centres of the others are only ever others", said)

    def cost(
        self, *, pairs: int, dim: int, world_size: int, node_size: int, labels: int = 1, negatives: int = 0
    ) -> LossCost:
        return class_cost(
            num_classes=self.num_classes,
            rate=self.sample_rate,
            pairs=pairs,
            labels=labels,
            dim=dim,
            world_size=world_size,
        )

    def encode(self, model: ContrastiveModel, batch: Batch) -> Encoded:
        return {"image": model.encode_image(batch["image"]), "label": batch["label"]}

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        assert self.centres is not None
        features, labels = encoded["image"], gather_rows(encoded["label"])
        # Drawn in this order from a state that is the same on every rank.
        classes = self.centres.sample(labels, rate=self.sample_rate)
        dims = None
        if self.num_dims is not None:
            dims = torch.randperm(self.embed_dim, device=features.device)[: self.num_dims].sort().values
        logits = class_logits(
            features,
            labels,
            centres=self.centres.take(classes),
            classes=classes,
            scale=self.scale,
            margin=self.margin,
            filter_above=self.filter_above,
            dims=dims,
        )
        cosine = (logits.cosine * logits.present).sum() / logits.present.sum().clamp(min=1)
        return StepOutput(
            terms={"classes": self.loss_of(logits)},
            weights={"classes": 1.0},
            metrics={"own_cosine": cosine.detach()},
        )


def _check(name: str, value: object, holds: bool, meaning: str) -> None:
    if not holds:
        raise ConfigError(f"objective.{name}={value} has to be {meaning}")
