"""What every training method is: towers on one rank's rows, then losses over all ranks."""

from collections.abc import Mapping

from torch import Tensor, nn

from vlm.distributed import Topology
from vlm.losses import LossCost
from vlm.models import ClassCentres
from vlm.types import Batch, ContrastiveModel, StepOutput

Encoded = Mapping[str, Tensor]
"""Tensors with one row a sample."""


class Objective(nn.Module):
    """Base of the training methods.

    `encode` and `loss` are apart so that accumulation can encode micro-batches, take one loss over all
    their rows, and replay: `encode` must not communicate, `loss` must not look at single images.
    """

    required_keys: frozenset[str]
    """Entries that the first batch must have."""

    centres: ClassCentres | None = None
    """Of classes, each rank its own rows: outside of the model, stepped and saved apart."""

    num_groups = 1
    """Of ranks, whose losses' mean the loss is; known after `setup`."""

    def setup(self, topology: Topology) -> None:
        """Called once, on every rank, after process groups exist and before anything else."""

    def chance_losses(self, global_batch_size: int) -> Mapping[str, float]:
        """What guessing gives for loss terms, by name; a run that stays there is told so."""
        return {}

    def check_classes(self, num_classes: int | None) -> None:
        """Compare with the number of classes that the labels may name; None where they do not say it.

        Raises:
            ConfigError: the objective is about fewer.
        """

    def cost(
        self, *, pairs: int, dim: int, world_size: int, node_size: int, labels: int = 1, negatives: int = 0
    ) -> LossCost | None:
        """What the loss takes on a rank with so many pairs, before there are process groups.

        Args:
            dim: of the vectors. node_size: ranks on a machine. labels, negatives: of a sample.

        Raises:
            ConfigError: so many ranks cannot be grouped as asked for.
        """
        return None

    def encode(self, model: ContrastiveModel, batch: Batch) -> Encoded:
        """Run the towers over this rank's rows; no collectives."""
        raise NotImplementedError

    @property
    def decoders(self) -> frozenset[str]:
        """Names of the model's parts that it trains beside the towers: `text_decoder`, `image_decoder`."""
        return frozenset()

    def before_step(self, step: int) -> None:
        """Called before each step, with its number from 0."""

    @property
    def takes_negatives(self) -> bool:
        """Whether it looks at the hard negatives of a batch."""
        return False

    @property
    def needs_teacher(self) -> bool:
        """Whether `loss` looks at what `teach` gives."""
        return False

    def teach(self, teacher: ContrastiveModel, batch: Batch) -> Encoded:
        """Run the towers of the average of the weights over this rank's rows, without gradients.

        What it gives is put beside what `encode` gives for the same rows, under names of its own.
        """
        return {}

    def loss(self, model: ContrastiveModel, encoded: Encoded) -> StepOutput:
        """Loss terms over the rows of all ranks; random numbers come in the same order on each.

        Gradient contract: the mean over ranks of what each rank returns is the global loss, and the
        mean over ranks of the gradients is the gradient of the global loss.
        """
        raise NotImplementedError

    def after_step(self, model: ContrastiveModel, step: int) -> None:
        """Called after each optimizer step (clamps, averages)."""
