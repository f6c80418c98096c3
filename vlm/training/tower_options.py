"""How the towers of a run compute; what they compute, their weights and names stay as they are."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from vlm.errors import ConfigError
from vlm.models import DualEncoder, blocks_of, recompute, wrap_forward

log = logging.getLogger(__name__)

Compile = Literal["blocks", "towers"]


@dataclass(frozen=True, kw_only=True)
class TowerOptions:
    """Applied once, to a model that has its weights.

    Args:
        activation_checkpointing: blocks keep their input alone and run forward again in the backward.
        compile: what torch.compile makes one program of, in training; None: nothing.
    """

    activation_checkpointing: bool
    compile: Compile | None

    def check(self, model: DualEncoder) -> None:
        """Refuse a model that would be trained otherwise with these options than without; warn of no effect.

        Raises:
            ConfigError: batch normalisation in a block that would see each batch twice.
        """
        for name, tower in model.parts().items():
            found = list(blocks_of(tower))
            if self.activation_checkpointing:
                _refuse_batch_norm(tower, found, name)
            for key, asked in (
                ("trainer.activation_checkpointing=true", self.activation_checkpointing),
                ("trainer.compile=blocks", self.compile == "blocks"),
            ):
                if asked and not found:
                    log.warning("%s does nothing in model.%s, which has no stack of equal blocks", key, name)

    def check_compiler(self, device: torch.device) -> None:
        """Compile something small, so that a lack shows before anything is trained.

        Raises:
            ConfigError: it fails, as without a C++ compiler.
        """
        if self.compile is None:
            return
        unique = float(time.time_ns())  # else a kernel on the disk would do, and the next be refused
        try:
            torch.compile(lambda x: x + unique)(torch.ones(2, device=device))
        except Exception as error:  # of torch, of Triton, or of the operating system
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"trainer.compile={self.compile}: torch.compile fails on {device.type} here: {reason}; "
                "install what it lacks (on a CPU a C++ compiler, which the variable CXX may name), or set it "
                "to null"
            ) from error

    def apply(self, model: DualEncoder) -> None:
        """Change how the towers compute; before an engine cuts them up."""
        if self.compile is not None:
            # Blocks of one class share a limit, and those of a network with stages differ in their sizes.
            torch._dynamo.config.recompile_limit = 64
            # A tower's program is cut where DDP's buckets end, so that they are reduced meanwhile; with one
            # program a block they are anyway.
            torch._dynamo.config.optimize_ddp = self.compile == "towers"
        for name, tower in model.parts().items():
            for block in blocks_of(tower):
                if self.compile == "blocks":
                    _compile(block, any_size=name != "image")
                if self.activation_checkpointing:
                    recompute(block)
            if self.compile == "towers":
                _compile(tower, any_size=name != "image")


def _compile(module: nn.Module, *, any_size: bool) -> None:
    """One program for all sizes of its input, or one for each.

    Texts of each batch are as long as its longest. Images change in number alone, with the last micro-batch,
    and torch cannot compile the backward of every convolution for sizes that it does not know.
    """
    # Dropout then draws what it draws without compiling.
    compiled = torch.compile(module.forward, dynamic=any_size, options={"fallback_random": True})
    wrap_forward(module, partial(_in_training, module, compiled))


def _in_training(
    module: nn.Module,
    compiled: Callable[..., Any],
    forward: Callable[..., Any],
    *arguments: Any,
    **keywords: Any,
) -> Any:
    """An evaluation is the same as that of the finished run, and compiles nothing for batches of its own."""
    return (compiled if module.training else forward)(*arguments, **keywords)


def _refuse_batch_norm(tower: nn.Module, found: list[nn.Module], key: str) -> None:
    inside = {id(module) for block in found for module in block.modules()}
    for name, module in tower.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) in inside:
            raise ConfigError(
                f"trainer.activation_checkpointing=true with batch normalisation in {key}.{name}: its "
                "statistics would count each batch twice; set it to false, or take another norm, as by "
                "model.image.options.norm_layer=groupnorm1"
            )
