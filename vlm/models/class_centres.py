"""Centres of very many classes, cut into the rows of ranks, and the optimizer that moves only those in use.

They stay out of the module tree that an engine sees: an engine would copy one rank's rows over all others'.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vlm.distributed import Topology
from vlm.errors import CheckpointError, ConfigError

_BLOCK = 8_192
"""Rows that are drawn, or stepped, at once."""


def rows_of_rank(num_classes: int, topology: Topology) -> range:
    """The classes of one rank: consecutive, and one more on the first ranks where they do not divide."""
    each, more = divmod(num_classes, topology.world_size)
    first = each * topology.rank + min(topology.rank, more)
    return range(first, first + each + (topology.rank < more))


class ClassCentres:
    """The rows of this rank, in float32, with AdamW's moments of each.

    A step moves only the rows that took part in the loss: moments and decay of all others stay as they are,
    bit for bit. Bias is corrected by how often a row was stepped. With every row in every step this is AdamW.

    Args:
        seed: the centres are drawn from it, the same on any number of ranks.
        topology: which rank this is, and of how many.

    Raises:
        ConfigError: there are fewer classes than ranks.

    Source: arXiv:2203.15565 for the layout; arXiv:1711.05101 for the optimizer.
    """

    STATE = ("weight", "exp_avg", "exp_avg_sq", "steps")

    def __init__(
        self, *, num_classes: int, dim: int, seed: int, topology: Topology, device: torch.device | str = "cpu"
    ) -> None:
        if num_classes < topology.world_size:
            raise ConfigError(
                f"objective.num_classes={num_classes} is less than the {topology.world_size} ranks"
            )
        self.num_classes = num_classes
        self.rows = rows_of_rank(num_classes, topology)
        self.weight = torch.empty(len(self.rows), dim, device=device)
        self.exp_avg = torch.zeros_like(self.weight)
        self.exp_avg_sq = torch.zeros_like(self.weight)
        self.steps = torch.zeros(len(self.rows), dtype=torch.int32, device=device)
        for block in _blocks(self.rows):
            drawn = _draw_block(seed, block.start // _BLOCK, dim)
            start = block.start % _BLOCK
            self.weight[block.start - self.rows.start : block.stop - self.rows.start] = drawn[
                start : start + len(block)
            ]
        self._taken: tuple[Tensor, Tensor] | None = None

    def sample(self, labels: Int64[Tensor, "n l"], *, rate: float) -> Int64[Tensor, " c"]:
        """Which classes of this rank take part in a step, ascending; called on every rank with the same.

        Every class in `labels` does, and others drawn at random, so that max(rate · classes, classes in
        labels) take part over all ranks. They are drawn from torch's random state, which must be the same on
        every rank: which ones does then not depend on the number of ranks.

        Args:
            labels: of the samples of all ranks; -1 for none.

        Raises:
            ConfigError: a label is none of the classes.
        """
        device = self.weight.device
        positive = torch.unique(labels[labels >= 0])
        if len(positive) and int(positive[-1]) >= self.num_classes:
            raise ConfigError(
                f"a sample has label {int(positive[-1])}, and objective.num_classes={self.num_classes}: "
                "labels have to be below it"
            ).on_all_ranks()
        if rate >= 1:
            return torch.arange(self.rows.start, self.rows.stop, device=device)
        scores = torch.rand(self.num_classes, device=device)
        scores[positive] = -1
        count = max(int(rate * self.num_classes), len(positive))
        chosen = scores.topk(count, largest=False, sorted=False).indices
        chosen = chosen[(chosen >= self.rows.start) & (chosen < self.rows.stop)]
        return chosen.sort().values

    def take(self, classes: Int64[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """A copy of these rows whose gradient the next `step` applies."""
        index = classes - self.rows.start
        rows = self.weight[index].requires_grad_()
        self._taken = index, rows
        return rows

    @torch.no_grad()
    def step(self, *, lr: float, betas: Sequence[float], eps: float, weight_decay: float) -> None:
        """One step of AdamW on the rows that were taken, and on no others."""
        if self._taken is None:
            return
        index, taken = self._taken
        self._taken = None
        if taken.grad is None:
            return
        self.steps[index] += 1
        for part, grad in zip(torch.split(index, _BLOCK), torch.split(taken.grad, _BLOCK), strict=True):
            count = self.steps[part].to(grad.dtype)[:, None]
            exp_avg = self.exp_avg[part].lerp_(grad, 1 - betas[0])
            exp_avg_sq = self.exp_avg_sq[part].mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
            self.exp_avg[part], self.exp_avg_sq[part] = exp_avg, exp_avg_sq
            change = exp_avg.div_(1 - betas[0] ** count)
            change.div_(exp_avg_sq.div_(1 - betas[1] ** count).sqrt_().add_(eps))
            self.weight[part] = self.weight[part].mul_(1 - lr * weight_decay).sub_(change.mul_(lr))

    def to(self, device: torch.device) -> None:
        """Move weights and moments."""
        for name, value in self.state().items():
            setattr(self, name, value.to(device))

    def state(self) -> dict[str, Tensor]:
        """The rows of this rank, by name."""
        return {name: getattr(self, name) for name in self.STATE}

    def load(self, pieces: Iterator[tuple[range, Mapping[str, Any]]]) -> None:
        """Take over what ranks of an earlier run had, of which there may have been another number.

        Args:
            pieces: rows of the whole, and their states by name, tensors or what gives them when it is cut;
                together they must cover the rows of this rank.

        Raises:
            CheckpointError: rows are missing.
        """
        missing = len(self.rows)
        for rows, state in pieces:
            start, stop = max(rows.start, self.rows.start), min(rows.stop, self.rows.stop)
            if start >= stop:
                continue
            for name, own in self.state().items():
                own[start - self.rows.start : stop - self.rows.start] = state[name][
                    start - rows.start : stop - rows.start
                ]
            missing -= stop - start
        if missing:
            raise CheckpointError(
                f"{missing:,} of the class centres {self.rows.start:,} to {self.rows.stop - 1:,} "
                "are in no file"
            )


def _blocks(rows: range) -> Iterator[range]:
    """The rows, cut where a block of the whole ends."""
    start = rows.start
    while start < rows.stop:
        stop = min(rows.stop, (start // _BLOCK + 1) * _BLOCK)
        yield range(start, stop)
        start = stop


def _draw_block(seed: int, block: int, dim: int) -> Float[Tensor, "rows d"]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**63)
    return torch.empty(_BLOCK, dim).normal_(std=0.01, generator=generator)
