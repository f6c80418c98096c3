"""How many blocks lie above each parameter, for learning rates that fall with depth."""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn

from vlm.models import blocks_of

_BEHIND = "?"
"""A name that no pattern of timm takes, which puts it behind the last block."""


def blocks_above_timm(trunk: nn.Module) -> dict[str, int]:
    """Blocks above each parameter of a timm model, in the order of its family's `group_matcher`.

    The last block and what follows it have none above them. Empty where the family has no order.
    """
    if not hasattr(trunk, "group_matcher"):
        return {}
    place = group_parameters(_OneMore(trunk), trunk.group_matcher(coarse=False), reverse=True)  # type: ignore[arg-type, operator]
    last = place[_BEHIND] - 1
    return {name: max(0, last - place[name]) for name, _ in trunk.named_parameters()}


def blocks_above(tower: nn.Module) -> dict[str, int]:
    """Blocks above each parameter, blocks being the members of the outermost stacks of equal modules.

    Whatever is registered before a block, as embeddings are, lies below it. Empty where there is no stack.
    """
    blocks = list(blocks_of(tower))
    number_of = {p: number for number, block in enumerate(blocks, start=1) for p in block.parameters()}
    above, begun = {}, 0
    for name, parameter in tower.named_parameters():
        begun = max(begun, number_of.get(parameter, 0))
        above[name] = len(blocks) - begun
    return above if blocks else {}


@dataclass(frozen=True)
class _OneMore:
    """The parameters of a model, and one that stands behind its last block."""

    trunk: nn.Module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter | None]]:
        yield from self.trunk.named_parameters()
        yield _BEHIND, None
