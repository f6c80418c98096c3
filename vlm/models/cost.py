"""What a tower costs for one sample: counted on a model without memory for its weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vlm.errors import ConfigError
from vlm.models.dual_encoder import DualEncoder, described
from vlm.models.spec import ModelSpec

_FEW, _MORE = 2, 4
"""Rows that are counted; one alone takes other paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerCost:
    """Of a tower with its projection.

    Args:
        forward_flops: of one sample, two for each multiply-add; the backward takes twice as many.
        activation_bytes: kept of one sample for the backward, in float32.
    """

    parameters: int
    forward_flops: int
    activation_bytes: int


def tower_costs(spec: ModelSpec, *, text_length: int) -> dict[str, TowerCost]:
    """Costs of `image` and `text`, at texts of so many tokens.

    Args:
        spec: with its vocabulary filled in.

    Raises:
        ConfigError: a tower cannot be built, or its path depends on values of its input.
    """
    model = described(spec)
    with _without_values():
        return {
            "image": _cost([model.image, model.image_projection], partial(_images, model)),
            "text": _cost([model.text, model.text_projection], partial(_texts, model, text_length)),
        }


def tower_flops(spec: ModelSpec, *, text_lengths: Sequence[int]) -> tuple[int, list[int]]:
    """`forward_flops` of the image tower, and of the text tower at each length; else as `tower_costs`."""
    model = described(spec)
    with _without_values():
        image = _forward_flops(partial(_images, model))
        return image, [_forward_flops(partial(_texts, model, length)) for length in text_lengths]


@contextmanager
def _without_values() -> Iterator[None]:
    try:
        # Libraries look at the values of masks, unless a tensor says that it has none.
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"what model costs cannot be counted without running it: {reason}") from error


def _images(model: DualEncoder, rows: int) -> Tensor:
    size = model.spec.image.image_size
    return model.encode_image(torch.zeros(rows, 3, size, size, dtype=torch.uint8, device="meta"))


def _texts(model: DualEncoder, length: int, rows: int) -> Tensor:
    return model.encode_text(torch.zeros(rows, length, dtype=torch.int64, device="meta"))


def _cost(modules: list[nn.Module], encode: Callable[[int], Tensor]) -> TowerCost:
    few, more = (_kept_bytes(encode, rows) for rows in (_FEW, _MORE))
    return TowerCost(
        parameters=sum(parameter.numel() for module in modules for parameter in module.parameters()),
        forward_flops=_forward_flops(encode),
        activation_bytes=(more - few) // (_MORE - _FEW),  # what rows share, as weights, falls out
    )


def _forward_flops(encode: Callable[[int], Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode(_FEW)
    return int(counter.get_total_flops()) // _FEW


class _FusedAttention(TorchFunctionMode):
    """Attention as devices have it: without a device torch would keep the matrix of all weights."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps, and a result of the right shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out


def _kept_bytes(encode: Callable[[int], Tensor], rows: int) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = encode(rows)  # as long as its graph lives, no two storages share an address
    assert out.requires_grad
    return sum(kept.values())
