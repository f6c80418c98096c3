"""What losses keep for their backward and send over the wire, beside the formulas."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gloo import run_gloo
from torch import Tensor

from vlm.distributed import Topology, collectives, split_ranks
from vlm.losses import (
    IMPLEMENTATIONS,
    Implementation,
    gathered_bytes,
    info_nce,
    logits_bytes,
    loss_flops,
    sigmoid_loss,
    traffic_bytes,
)

KINDS = ("softmax", "sigmoid")
PAIRS, DIM = 8, 4
WORLD_SIZES = (16, 32, 64, 128)


def vectors(rows: int, dim: int) -> Tensor:
    return F.normalize(torch.randn(rows, dim), dim=1).requires_grad_()


def pair(rows: int) -> tuple[Tensor, Tensor]:
    return vectors(rows, DIM), vectors(rows, DIM)


def loss_of(kind: str, image: Tensor, text: Tensor, **how: Any) -> Tensor:
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (10.0, -5.0))
    if kind == "softmax":
        return info_nce(image, text, logit_scale=scale, **how)
    return sigmoid_loss(image, text, logit_scale=scale, logit_bias=bias, **how)


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes kept for the backward, a storage that several nodes keep counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    assert loss.requires_grad
    return sum(kept.values())


def exponent(sizes: tuple[int, ...], values: list[int]) -> float:
    """Of the power law through the points of a log-log plot."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def pretend_ranks(number: int) -> None:
    """This process as rank 0 of many: what it gathers are its own rows, `number` times."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=0, world_size=number, store=FakeStore())


def saved_at_each_size(implementation: Implementation, kind: str, group_size: int | None) -> list[int]:
    found = []
    for world_size in WORLD_SIZES:
        pretend_ranks(world_size)
        found.append(saved_in_a_group(implementation, kind, group_size))
    return found


def saved_in_a_group(implementation: Implementation, kind: str, group_size: int | None) -> int:
    group = split_ranks(group_size, key="objective.group_size")
    image, text = vectors(PAIRS, DIM), vectors(PAIRS, DIM)
    how = {"implementation": implementation, "group": group, "tile": 8}
    return saved_bytes(lambda: loss_of(kind, image, text, **how))


@pytest.fixture
def alone_again() -> Any:
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("implementation", "group_size", "expected"),
    [
        ("dense", None, 2),
        ("local_rows", None, 1),
        ("tiled", None, 1),
        ("dense", 4, 0),
        ("local_rows", 4, 0),
        ("tiled", 4, 0),
    ],
)
@pytest.mark.usefixtures("alone_again")
def test_what_is_kept_grows_with_the_columns_as_it_should(
    implementation: Implementation, group_size: int | None, expected: float, kind: str
) -> None:
    """Rows of a rank fixed, pairs of all ranks eightfold; in groups of fixed size nothing grows."""
    found = saved_at_each_size(implementation, kind, group_size)
    columns = tuple(PAIRS * world_size for world_size in WORLD_SIZES)
    assert exponent(columns, found) == pytest.approx(expected, abs=0.1), found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("implementation", "expected"), [("dense", 2), ("local_rows", 1), ("tiled", 1)])
@pytest.mark.usefixtures("alone_again")
def test_what_is_kept_grows_with_the_size_of_a_group_as_with_as_many_ranks(
    implementation: Implementation, expected: float, kind: str
) -> None:
    ungrouped = saved_at_each_size(implementation, kind, None)
    pretend_ranks(2 * WORLD_SIZES[-1])
    found = [saved_in_a_group(implementation, kind, group_size) for group_size in WORLD_SIZES]
    assert found == ungrouped
    assert exponent(WORLD_SIZES, found) == pytest.approx(expected, abs=0.1), found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("alone_again")
def test_tiles_keep_nothing_of_the_size_of_logits(kind: str) -> None:
    """Rows and columns together: what is kept is the vectors and a number or two for each."""
    sizes = (64, 128, 256, 512)
    found: dict[str, list[int]] = {}
    pretend_ranks(1)
    for implementation in IMPLEMENTATIONS:
        found[implementation] = [
            saved_bytes(
                lambda n=n, i=implementation: loss_of(
                    kind, vectors(n, DIM), vectors(n, DIM), implementation=i
                )
            )
            for n in sizes
        ]
    assert exponent(sizes, found["dense"]) == pytest.approx(2, abs=0.15)
    assert exponent(sizes, found["local_rows"]) == pytest.approx(2, abs=0.15)
    assert exponent(sizes, found["tiled"]) == pytest.approx(1, abs=0.05)
    assert found["tiled"][-1] < 4 * sizes[-1] * (4 * DIM + 4)


def counted_traffic() -> dict[tuple[str, str], int]:
    """Bytes this rank receives for each loss, a ring assumed, from the calls themselves."""
    received = 0
    ranks = Topology.current().world_size

    def counting(owner: Any, name: str, share: Callable[..., float]) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal received
            received += round(share(*args))
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    def nbytes(tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    counting(collectives, "gather_into", lambda out, own: (ranks - 1) * nbytes(own))
    counting(collectives, "reduce_and_scatter", lambda own, whole: (ranks - 1) * nbytes(own))
    counting(dist, "all_reduce", lambda tensor, *_: 2 * (ranks - 1) / ranks * nbytes(tensor))
    found = {}
    for kind, implementation in itertools.product(KINDS, IMPLEMENTATIONS):
        received = 0
        loss_of(kind, *pair(PAIRS), implementation=implementation).backward()
        found[kind, implementation] = received
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_traffic_is_that_of_the_formula(world_size: int, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"pairs": PAIRS, "all_pairs": PAIRS * world_size, "dim": DIM}
    for found in run_gloo(counted_traffic, world_size, tmp_path):
        assert len(found) == len(KINDS) * len(IMPLEMENTATIONS)
        for (kind, implementation), received in found.items():
            assert received == traffic_bytes(implementation, kind=kind, **sizes), (kind, implementation)


def test_one_rank_gathers_nothing() -> None:
    for implementation in IMPLEMENTATIONS:
        sizes: dict[str, Any] = {"kind": "softmax", "pairs": 64, "all_pairs": 64, "dim": 8}
        assert traffic_bytes(implementation, **sizes) == gathered_bytes(implementation, **sizes) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_products_are_those_that_torch_counts(implementation: Implementation, kind: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def in_place(into: Any, a: Any, b: Any, **_: Any) -> int:
        return 2 * int(a[0] * a[1] * b[1])

    rows, dim = 64, 16
    mapping = {torch.ops.aten.addmm_: in_place}  # torch counts addmm alone
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        how = {"implementation": implementation, "tile": 16}
        loss_of(kind, vectors(rows, dim), vectors(rows, dim), **how).backward()
    expected = loss_flops(implementation, kind=kind, pairs=rows, all_pairs=rows, dim=dim)
    assert counter.get_total_flops() == expected


def test_the_worked_example_of_65536_pairs_on_128_ranks() -> None:
    sizes = {"pairs": 512, "all_pairs": 65536}
    assert logits_bytes("local_rows", **sizes) > 60 * logits_bytes("local_rows", pairs=512, all_pairs=1024)
    assert logits_bytes("dense", **sizes) > 2**36
    assert math.isclose(gathered_bytes("tiled", kind="softmax", dim=1024, **sizes), 2 * 4 * 1024 * 65536)
