"""The gradient contract over a whole model: what data parallelism averages is the global gradient."""

import io
import logging
from pathlib import Path

import pytest
import torch
from gloo import run_gloo
from tiny_model import objective_of, tiny_mapping, token_rows
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlm.distributed import Topology
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.objectives import Objective
from vlm.types import Batch

SPEC = ModelSpec.from_mapping(tiny_mapping())
ROWS = 8


class Step(nn.Module):
    """Encode and loss in one forward, as the data-parallel wrapper needs it."""

    def __init__(self, model: DualEncoder, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.loss(self.model, self.objective.encode(self.model, batch)).total


def own_rows(topology: Topology) -> Batch:
    """This rank's slice of one batch; rows have captions of different lengths, some of them equal."""
    generator = torch.Generator().manual_seed(3)
    text = token_rows(ROWS, generator=generator)
    batch = {
        "image": torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": text,
        "caption_id": torch.tensor([0, 1, 2, 1, 3, 0, 4, 1]),
    }
    return Batch(**{name: value.chunk(topology.world_size)[topology.rank] for name, value in batch.items()})  # type: ignore[typeddict-item]


def both() -> list[dict[str, Tensor]]:
    """Without and with equal captions masked, in one start of the processes."""
    return [gradients(masked) for masked in (False, True)]


def gradients(masked: bool) -> dict[str, Tensor]:
    """Mean loss and averaged gradient of every parameter, in float64."""
    topology = Topology.current()
    torch.manual_seed(0)
    model = build_model(SPEC).double()
    step: nn.Module = Step(model, objective_of(mask_equal_captions=masked))
    if topology.world_size > 1:
        step = DistributedDataParallel(step)
    loss = step(own_rows(topology))
    loss.backward()
    total = loss.detach().clone()
    if topology.world_size > 1:
        torch.distributed.all_reduce(total)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": total / topology.world_size, **grads}  # type: ignore[dict-item]


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_gradient_of_the_model_is_that_of_one_process(tmp_path: Path, world_size: int) -> None:
    expected = both()
    assert {"logit_scale", "image_projection.weight", "text_projection.weight"} < expected[0].keys()
    for rank in run_gloo(both, world_size, tmp_path):
        for found, alone in zip(rank, expected, strict=True):
            for name, value in alone.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=name)


def told_by_auto() -> str:
    """What this rank logs of a loss whose implementation is `auto`."""
    logger, told = logging.getLogger("vlm"), io.StringIO()
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(told))
    step = Step(build_model(SPEC), objective_of(implementation="auto"))
    for _ in range(2):
        step(own_rows(Topology.current()))
    return told.getvalue()


@pytest.mark.long
def test_the_first_rank_alone_says_once_what_auto_is(tmp_path: Path) -> None:
    first, second = run_gloo(told_by_auto, 2, tmp_path)
    assert first.count("objective.implementation=auto is local_rows: 4 x 8 logits") == 1
    assert second == ""
