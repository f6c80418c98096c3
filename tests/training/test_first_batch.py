"""What a run looks at in its first batch."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from gloo import run_gloo
from tiny_model import objective_of

from vlm.errors import DataError
from vlm.training.module import TrainingModule
from vlm.types import Batch


def refusal(rows: list[int]) -> tuple[str, bool]:
    length = rows[dist.get_rank()]
    batch = Batch(
        image=torch.zeros(length, 3, 2, 2), text=torch.zeros(length, 2), caption_id=torch.zeros(length)
    )
    try:
        TrainingModule._check_first(SimpleNamespace(objective=objective_of()), batch)  # type: ignore[arg-type]
    except DataError as error:
        return str(error), error.of_all_ranks
    return "", False


def refusals() -> list[tuple[str, bool]]:
    return [refusal(rows) for rows in ([4, 4], [4, 3])]


def test_batches_that_differ_between_ranks_are_refused_by_every_rank(tmp_path: Path) -> None:
    found = run_gloo(refusals, 2, tmp_path)
    assert found[0] == found[1]
    (alike, _), (differing, of_all_ranks) = found[0]
    assert alike == ""
    assert "ranks have batches of [4, 3] rows" in differing
    assert "data.global_batch_size" in differing
    assert of_all_ranks
