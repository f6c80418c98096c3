"""Contrastive vision-language pretraining.

`vlm.load(path)` gives a trained model with its preprocessing and tokenizer; `train` and `vlm` are the
commands.
"""

from typing import TYPE_CHECKING, Any

from vlm import torchvision_shim

if TYPE_CHECKING:
    from vlm.inference import load

torchvision_shim.install()  # before anything imports torchvision, timm or lightning

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # lazily: commands that print help should not import every tower
        from vlm.inference import load

        return load
    raise AttributeError(f"module 'vlm' has no attribute {name!r}")
