import pytest
import torch
from small_shards import PREPROCESS, sample, write_shards

from vlm.data import eval_loader, open_shards, read_images, read_records
from vlm.errors import DataError

SIZES = [5, 0, 9, 3]


def read(shards, *, batch_size=4, num_workers=0, rank=0, world_size=1):
    return list(
        eval_loader(
            shards,
            PREPROCESS,
            batch_size=batch_size,
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
        )
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_every_sample_is_read_by_one_rank_and_ranks_run_equally_often(
    tmp_path, suffix, world_size, num_workers
):
    shards = open_shards(write_shards(tmp_path, SIZES, suffix=suffix), key="k")
    ranks = [read(shards, num_workers=num_workers, rank=r, world_size=world_size) for r in range(world_size)]
    assert {len(batches) for batches in ranks} == {-(-5 // world_size)}
    rows = {}
    for rank, batches in enumerate(ranks):
        for number, batch in enumerate(batches):
            first = (number * world_size + rank) * 4
            assert batch.indices.tolist() == list(range(first, min(first + 4, 17)))
            assert len(batch.images) == max(1, len(batch.indices))
            assert len(batch.records) == len(batch.indices)
            rows |= dict(
                zip(batch.indices.tolist(), zip(batch.images, batch.records, strict=False), strict=False)
            )
    assert sorted(rows) == list(range(17))
    for row, (image, record) in rows.items():
        assert record["key"] == f"{row:06d}"
        assert record["json"]["id"] == row
        assert record["cls"] == row % 10
        assert image[:, 4, 4].tolist() == [row, 0, 7]


def test_records_are_read_without_images(tmp_path):
    change = {"000003": {**sample(3), "png": b"no image"}}
    shards = open_shards(write_shards(tmp_path, SIZES, change=change), key="k")
    records = list(read_records(shards))
    assert [record["txt"] for record in records] == [f"caption {n}" for n in range(17)]


def test_images_are_found_by_their_rows_in_any_order(tmp_path):
    shards = open_shards(write_shards(tmp_path, SIZES), key="k")
    images = read_images(shards, [16, 2, 9, 2])
    assert [image.getpixel((0, 0)) for image in images] == [(n, 0, 7) for n in (16, 2, 9, 2)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("members", [{"png": b"no image"}, {"png": sample(0)["png"], "json": b"{"}])
def test_a_broken_sample_ends_an_evaluation_and_is_named(tmp_path, num_workers, members):
    shards = open_shards(write_shards(tmp_path, SIZES, change={"000007": members}), key="k")
    with pytest.raises(DataError, match=r"00002\.tar/000007 cannot be evaluated: its (png|json)"):
        read(shards, num_workers=num_workers)


def test_the_blank_row_of_a_rank_without_samples_has_the_shape_of_an_image(tmp_path):
    shards = open_shards(write_shards(tmp_path, [3]), key="k")
    (batch,) = read(shards, rank=1, world_size=2)
    assert batch.images.shape == (1, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.records == []
