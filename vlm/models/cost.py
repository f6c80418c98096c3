"""What a tower costs for one sample: counted on a model without memory for its weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vlm.errors import ConfigError
from vlm.models.blocks import blocks_of, recompute, wrap_forward
from vlm.models.dual_encoder import DualEncoder, described
from vlm.models.spec import ModelSpec

_FEW, _MORE = 2, 4
"""Rows that are counted; one alone takes other paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerCost:
    """Of a tower with its projection.

    Args:
        forward_flops: of one sample in training, two for each multiply-add; the backward takes twice as many.
        recomputed_flops: of what runs forward again in the backward.
        activation_bytes: kept of one sample for the backward, in float32.
        recomputed_bytes: what the largest block that runs again adds to these meanwhile.
    """

    parameters: int
    forward_flops: int
    recomputed_flops: int
    activation_bytes: int
    recomputed_bytes: int

    def times(self, rows: int) -> "TowerCost":
        """Where a sample has so many rows for the tower."""
        per_row = ("forward_flops", "recomputed_flops", "activation_bytes", "recomputed_bytes")
        return replace(self, **{name: rows * getattr(self, name) for name in per_row})


def tower_costs(
    spec: ModelSpec, *, text_length: int, activation_checkpointing: bool = False
) -> dict[str, TowerCost]:
    """Costs of each tower with what makes its vector, and of each decoder, at texts of so many tokens.

    Half of the patches are hidden from the image decoder, of whose pass the other half's through the image
    tower is a part.

    Args:
        spec: with its vocabulary filled in.
        activation_checkpointing: whether blocks keep their input alone, and run again in the backward.

    Raises:
        ConfigError: a tower cannot be built, or its path depends on values of its input.
    """
    model = described(spec)
    passes = _passes(model, text_length)
    costs = {}
    for name, part in model.parts().items():
        recomputed = list(blocks_of(part)) if activation_checkpointing else []
        with _without_values():
            modules = model.side(name) if name in model.towers() else (part,)
            costs[name] = _cost(list(modules), passes[name], recomputed)
    return costs


def tower_flops(spec: ModelSpec, *, text_lengths: Sequence[int]) -> tuple[int, list[int]]:
    """`forward_flops` of the image tower, and of all other parts at each length; else as `tower_costs`."""
    model = described(spec)
    with _without_values():
        image = _forward_flops(partial(_images, model))
        others = [[run for name, run in _passes(model, n).items() if name != "image"] for n in text_lengths]
        return image, [sum(map(_forward_flops, runs)) for runs in others]


def _passes(model: DualEncoder, text_length: int) -> dict[str, Callable[[int], Tensor]]:
    """By part, what it does for so many samples."""
    passes: dict[str, Callable[[int], Tensor]] = {"image": partial(_images, model)}
    if model.text is not None:
        passes["text"] = partial(_texts, model, text_length)
    if model.text_decoder is not None:
        passes["text_decoder"] = partial(_captions, model, text_length)
    if model.image_decoder is not None:
        passes["image_decoder"] = partial(_rebuilt, model, text_length)
    return passes


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


def _captions(model: DualEncoder, length: int, rows: int) -> Tensor:
    assert model.text is not None
    assert model.text_decoder is not None
    pooler, patches = model.spec.image_pooler, model.image.patches
    count, width = patches.count, patches.width
    if pooler is not None:
        count, width = pooler.queries - (pooler.kind == "shared"), model.spec.embed_dim
    memory = torch.zeros(rows, count, width, device="meta")
    return model.text_decoder(torch.zeros(rows, length, model.text.width, device="meta"), memory)  # type: ignore[no-any-return]


def _rebuilt(model: DualEncoder, length: int, rows: int) -> Tensor:
    assert model.text is not None
    assert model.image_decoder is not None
    size, half = model.spec.image.image_size, model.image.patches.count // 2
    places = torch.zeros(rows, half, dtype=torch.int64, device="meta")
    visible = model.visible_patches(
        torch.zeros(rows, 3, size, size, dtype=torch.uint8, device="meta"), places
    )
    states = torch.zeros(rows, length, model.text.width, device="meta")
    there = torch.ones(rows, length, dtype=torch.bool, device="meta")
    return model.image_decoder(visible, places, places, states, there)  # type: ignore[no-any-return]


def _cost(
    modules: list[nn.Module], encode: Callable[[int], Tensor], recomputed: list[nn.Module]
) -> TowerCost:
    few, more = (_kept_bytes(encode, rows, recomputed) for rows in (_FEW, _MORE))
    # What rows share, as weights, falls out of the difference.
    kept, *inside = ((b - a) // (_MORE - _FEW) for a, b in zip(few, more, strict=True))
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return TowerCost(
        parameters=sum(parameter.numel() for parameter in parameters),
        forward_flops=_forward_flops(encode),
        recomputed_flops=_recomputed_flops(encode, parameters, recomputed),
        activation_bytes=kept,
        recomputed_bytes=max(inside, default=0),
    )


def _forward_flops(encode: Callable[[int], Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode(_FEW)
    return int(counter.get_total_flops()) // _FEW


def _recomputed_flops(
    encode: Callable[[int], Tensor], parameters: list[nn.Parameter], recomputed: list[nn.Module]
) -> int:
    """Of one row: the forward of `recomputed` up to the last tensor that the backward needs of each.

    They stay such that they run again.
    """
    if not recomputed:
        return 0
    before = _step_flops(encode, parameters)
    for module in recomputed:
        recompute(module)
    return _step_flops(encode, parameters) - before


def _step_flops(encode: Callable[[int], Tensor], parameters: list[nn.Parameter]) -> int:
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(encode(_FEW).sum(), parameters, allow_unused=True)
    return int(counter.get_total_flops()) // _FEW


@contextmanager
def _around(modules: Sequence[nn.Module], around: Callable[..., Any]) -> Iterator[None]:
    for module in modules:
        wrap_forward(module, around)
    yield
    for module in modules:
        del module.forward


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


def _kept_bytes(encode: Callable[[int], Tensor], rows: int, recomputed: Sequence[nn.Module]) -> list[int]:
    """Of so many rows, `recomputed` keeping their inputs alone; then what each of these would add."""
    kept: dict[int, UntypedStorage] = {}
    beside = []

    def run(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        inside: dict[int, UntypedStorage] = {}
        with _keeping(inside):
            out = forward(*arguments, **keywords)
        kept.update(_storage(argument) for argument in arguments if isinstance(argument, Tensor))
        beside.append(_bytes(storage for key, storage in inside.items() if key not in kept))
        return out

    with _FusedAttention(), _keeping(kept), _around(recomputed, run):
        out = encode(rows)  # as long as its graph lives, no two storages share an address
    assert out.requires_grad
    return [_bytes(kept.values()), *beside]


def _keeping(kept: dict[int, UntypedStorage]) -> AbstractContextManager[None]:
    """Puts there what autograd keeps."""

    def keep(tensor: Tensor) -> Tensor:
        kept.update([_storage(tensor)])
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def _storage(tensor: Tensor) -> tuple[int, UntypedStorage]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage


def _bytes(storages: Iterable[UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)
