"""Class centres in checkpoints."""

from pathlib import Path

import pytest
import torch

from vlm.distributed import Topology
from vlm.errors import CheckpointError
from vlm.models import ClassCentres
from vlm.training.centres import load_centres, save_centres, wait_until_whole


def of_ranks(world_size: int, *, seed: int, dim: int = 5) -> list[ClassCentres]:
    ranks = [Topology(rank=rank, world_size=world_size) for rank in range(world_size)]
    return [ClassCentres(num_classes=23, dim=dim, seed=seed, topology=rank) for rank in ranks]


def saved(folder: Path, world_size: int) -> dict[str, torch.Tensor]:
    """Of ranks that have taken a step; what they have together."""
    parts = of_ranks(world_size, seed=1)
    for part in parts:
        rows = part.take(torch.tensor([part.rows.start, part.rows.stop - 1]))
        rows.backward(torch.randn(rows.shape))
        part.step(lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
        save_centres(folder, part)
    return {name: torch.cat([part.state()[name] for part in parts]) for name in ClassCentres.STATE}


@pytest.mark.parametrize(("before", "now"), [(4, 3), (4, 1), (1, 4), (2, 3)])
def test_any_number_of_ranks_reads_what_another_wrote(before: int, now: int, tmp_path: Path) -> None:
    whole = saved(tmp_path, before)
    parts = of_ranks(now, seed=2)
    for part in parts:
        load_centres(tmp_path, part)
    for name, value in whole.items():
        assert torch.equal(torch.cat([part.state()[name] for part in parts]), value), name


def test_a_missing_file_is_named_by_its_rows(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    (tmp_path / "centres_000000000006_000000000012.safetensors").unlink()
    with pytest.raises(CheckpointError, match="6 of the class centres 0 to 22 are in no file"):
        load_centres(tmp_path, of_ranks(1, seed=2)[0])


def test_a_file_that_the_first_rank_cannot_see_is_waited_for_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 4)
    wait_until_whole(tmp_path, 23)
    (tmp_path / "centres_000000000006_000000000012.safetensors").rename(tmp_path / "elsewhere")
    monkeypatch.setattr("vlm.training.centres._PATIENCE_S", 0.0)
    with pytest.raises(CheckpointError, match=r"centres 6 to 11 .* put paths\.runs on a disk"):
        wait_until_whole(tmp_path, 23)
    (tmp_path / "elsewhere").rename(tmp_path / "centres_000000000006_000000000012.safetensors")
    with pytest.raises(CheckpointError, match="centres 23 to 29 "):
        wait_until_whole(tmp_path, 30)


def test_damaged_and_other_centres_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    with pytest.raises(CheckpointError, match="damaged or others"):
        load_centres(tmp_path, of_ranks(1, seed=2, dim=6)[0])
    path = next(tmp_path.glob("centres_*"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged or others"):
        load_centres(tmp_path, of_ranks(1, seed=2)[0])
