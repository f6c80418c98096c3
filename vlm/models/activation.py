"""Which activation functions a model has: no shape tells them, and weights work with one of them only."""

from torch import nn

_MODULES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "transformers.activations",
    "vlm.models",
)
_NAMES = {
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUPytorchTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
}


def activations(module: nn.Module) -> str:
    """Names of the activation functions among the parts of `module`, as one text; empty where it has none."""
    return ", ".join(sorted({_name(part) for part in module.modules() if _is_activation(part)}))


def _is_activation(part: nn.Module) -> bool:
    leaf = next(part.parameters(), None) is None and next(part.children(), None) is None
    return leaf and type(part).__module__.startswith(_MODULES)


def _name(part: nn.Module) -> str:
    if isinstance(part, nn.GELU) and part.approximate == "tanh":
        return "gelu_tanh"
    return _NAMES.get(type(part).__name__, type(part).__name__.lower())
