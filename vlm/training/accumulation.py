"""One step's loss and gradients, the towers seeing all rows at once or micro-batch by micro-batch.

Adding up the losses of micro-batches would compare each pair with its own micro-batch only. Here all rows are
encoded first, without a graph; one loss over all of them gives the gradient of every vector; then each
micro-batch is encoded again, and its vectors' gradients go back through the towers. The result is that of the
whole batch, the memory of the towers that of a micro-batch, and the price one more forward.

Source: arXiv:2101.06983, section 3.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from vlm.objectives import Encoded, Objective
from vlm.types import Batch, ContrastiveModel, StepOutput

Backward = Callable[[Tensor, bool], None]
"""Sends a scalar back through the towers; true for the last of a step, when ranks reduce gradients."""


def loss_and_gradients(
    objective: Objective,
    model: ContrastiveModel,
    batch: Batch,
    *,
    encode: Callable[[Batch], Encoded],
    teach: Callable[[Batch], Encoded] | None = None,
    micro_batch_size: int | None,
    seed: Callable[[int | None], None],
    backward: Backward,
    done: Callable[[str], None] = lambda part: None,
) -> StepOutput:
    """Leave the gradients of `objective` over the whole batch in the parameters of `model`.

    Args:
        encode: `objective.encode` of a micro-batch by `model`, which an engine may have wrapped. It is the
            only part that may run under autocast, which has to end with it.
        teach: `objective.teach` of a micro-batch by a teacher; None: there is none.
        micro_batch_size: rows that the towers see at once; None: all of this rank.
        seed: is called with the number of a micro-batch before it is encoded, and sets the random state, so
            that dropout draws the same when it is encoded again; and with None before the loss, whose
            random numbers are the same on every rank.
        done: is told which part of the step is over, `encode`, `loss` or `backward`.
    """
    parts = list(split(batch, micro_batch_size))
    if len(parts) == 1:
        seed(0)
        encoded = encode(batch)
        taught = teach(batch) if teach else {}
        done("encode")
        seed(None)
        output = objective.loss(model, _full({**encoded, **taught}))
        done("loss")
        backward(output.total, True)
        done("backward")
        return output
    vectors = _encode_without_graph(encode, parts, seed)
    taught = _joined([_full(teach(part)) for part in parts]) if teach else {}
    done("encode")
    seed(None)
    output = objective.loss(model, {**vectors, **taught})
    torch.autograd.backward(output.total)  # to the vectors, and to the parameters of the loss itself
    done("loss")
    first = 0
    for number, part in enumerate(parts):
        seed(number)
        encoded = _full(encode(part))
        done("encode")
        rows = slice(first, first := first + _length(encoded))
        products = [
            (encoded[name] * value.grad[rows]).sum()
            for name, value in vectors.items()
            if value.grad is not None
        ]
        backward(torch.stack(products).sum(), number == len(parts) - 1)
        done("backward")
    return output


def split(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Micro-batches of `size` rows, the last may have fewer; entries that are not rows stay behind."""
    length = len(batch["image"])
    if size is None or size >= length:
        yield batch
        return
    rows = {name: value for name, value in batch.items() if name != "broken"}
    for first in range(0, length, size):
        part = {name: cast(Any, value)[first : first + size] for name, value in rows.items()}
        yield cast(Batch, part)


def _encode_without_graph(
    encode: Callable[[Batch], Encoded], parts: list[Batch], seed: Callable[[int | None], None]
) -> dict[str, Tensor]:
    """All rows, those of floating point as leaves of a new graph."""
    encoded = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            seed(number)
            encoded.append(_full(encode(part)))
    rows = _joined(encoded).items()
    return {name: value.requires_grad_() if value.is_floating_point() else value for name, value in rows}


def _joined(parts: list[Encoded]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _full(encoded: Encoded) -> Encoded:
    """In single precision what came out of the towers in half."""
    half = (torch.bfloat16, torch.float16)
    return {name: value.float() if value.dtype in half else value for name, value in encoded.items()}


def _length(encoded: Mapping[str, Tensor]) -> int:
    return len(next(iter(encoded.values())))
