"""Class centres: which rows take part, which move, and what is kept of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.models.class_centres import ClassCentres, rows_of_rank

ADAMW: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.2}
ONE = Topology(rank=0, world_size=1)


def centres(topology: Topology = ONE, num_classes: int = 23) -> ClassCentres:
    return ClassCentres(num_classes=num_classes, dim=5, seed=1, topology=topology)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 23])
def test_ranks_own_every_class_once_and_start_from_the_same_values(world_size: int) -> None:
    ranks = [Topology(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [row for rank in ranks for row in rows_of_rank(23, rank)] == list(range(23))
    weight = torch.cat([centres(rank).weight for rank in ranks])
    assert torch.equal(weight, centres().weight)


def test_values_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [Topology(rank=rank, world_size=3) for rank in range(3)]
    monkeypatch.setattr("vlm.models.class_centres._BLOCK", 4)
    assert torch.equal(torch.cat([centres(rank).weight for rank in ranks]), centres().weight)
    assert len(centres().weight.unique(dim=0)) == 23


def test_fewer_classes_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.num_classes=3 is less than the 4 ranks"):
        centres(Topology(rank=0, world_size=4), num_classes=3)


@pytest.mark.parametrize(("rate", "count"), [(0.0, 4), (0.1, 4), (0.5, 11), (1.0, 23)])
def test_sampled_classes(rate: float, count: int) -> None:
    labels = torch.tensor([[3, 20], [3, -1], [0, 9]])
    chosen = sampled(ONE, labels, rate)
    assert len(chosen) == count == max(int(rate * 23), 4)
    assert {0, 3, 9, 20} <= set(chosen.tolist())
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    by_rank = [sampled(Topology(rank=rank, world_size=4), labels, rate) for rank in range(4)]
    assert torch.cat(by_rank).tolist() == chosen.tolist(), "the same on any number of ranks"


def sampled(topology: Topology, labels: Tensor, rate: float) -> Tensor:
    own = centres(topology)
    torch.manual_seed(0)
    return own.sample(labels, rate=rate)


def test_all_other_classes_are_equally_likely() -> None:
    labels, seen = torch.tensor([[7]]), torch.zeros(23)
    torch.manual_seed(0)
    for _ in range(2000):
        seen[centres_once.sample(labels, rate=0.4)] += 1
    assert seen[7] == 2000
    others = seen[torch.arange(23) != 7] / 2000  # 8 of 22
    assert (others - 8 / 22).abs().max() < 0.05


centres_once = centres()


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"label 23, and objective.num_classes=23"):
        centres().sample(torch.tensor([[23]]), rate=0.5)


def test_rows_that_did_not_take_part_do_not_move() -> None:
    own = centres()
    step(own, torch.arange(23), seed=0)
    before = {name: value.clone() for name, value in own.state().items()}
    taken = torch.tensor([2, 3, 17])
    step(own, taken, seed=1)
    rest = torch.ones(23, dtype=torch.bool)
    rest[taken] = False
    for name, value in own.state().items():
        assert torch.equal(value[rest], before[name][rest]), name
        assert (value[taken] != before[name][taken]).all(), name


def test_every_row_in_every_step_is_adamw() -> None:
    own = centres()
    weight = own.weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], **ADAMW)
    for number in range(5):
        step(own, torch.arange(23), seed=number)
        weight.grad = torch.randn(23, 5, generator=draws(number))
        optimizer.step()
    torch.testing.assert_close(own.weight, weight.detach(), rtol=0, atol=1e-7)


def test_a_row_counts_its_own_steps() -> None:
    """Steps without it change nothing: the first with it is as large as the first of all."""
    late, early = centres(), centres()
    for number in range(6):
        step(late, torch.tensor([0]), seed=number)
    step(late, torch.tensor([4]), seed=9)
    step(early, torch.tensor([4]), seed=9)
    assert torch.equal(late.weight[4], early.weight[4])


def step(own: ClassCentres, classes: Tensor, *, seed: int) -> None:
    rows = own.take(classes)
    rows.backward(torch.randn(rows.shape, generator=draws(seed)))
    own.step(**ADAMW)
