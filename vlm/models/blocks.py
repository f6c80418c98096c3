"""A tower's repeated parts: what is cut up, computed again or compiled, one by one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost stacks of equal modules: a transformer's blocks, a network's stages."""
    for child in module.children():
        members = list(child.children())
        stack = isinstance(child, nn.ModuleList | nn.Sequential) and len({type(m) for m in members}) == 1
        if stack and any(True for _ in child.parameters()):
            yield from members
        else:
            yield from blocks_of(child)


def wrap_forward(module: nn.Module, around: Callable[..., Any]) -> None:
    """Let `around(forward, *arguments)` be the module's forward.

    The module stays where it is, and so do the names of its weights; what engines hook to it, such as
    gathering weights, stays outside of `around`.
    """
    module.forward = partial(around, module.forward)


def recompute(module: nn.Module) -> None:
    """Keep the input alone for the backward, which runs the forward again, drawing the same numbers."""
    wrap_forward(module, _recomputed)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **keywords)
    return checkpoint(partial(forward, **keywords), *arguments, use_reentrant=False)
