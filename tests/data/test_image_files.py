from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_loaded

from vlm.data import ImageFile
from vlm.distributed import Topology
from vlm.inference import Embedder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_box_is_left_top_width_height_and_black_outside(photo: Path) -> None:
    whole = np.asarray(ImageFile(str(photo)).open())
    part = np.asarray(ImageFile(str(photo), (10.0, 5.0, 20.0, 8.0)).open())
    assert np.array_equal(part, whole[5:13, 10:30])
    over = np.asarray(ImageFile(str(photo), (30.0, 20.0, 20.0, 20.0)).open())
    assert np.array_equal(over[:10, :10], whole[20:, 30:])
    assert not over[10:].any()


def test_vectors_of_files_are_those_of_their_pictures_in_any_batch(photo: Path) -> None:
    loaded = tiny_loaded()
    files = [ImageFile(str(photo)), *(ImageFile(str(photo), (n, n, 9.0, 9.0)) for n in (0.0, 4.0, 8.0, 12.0))]
    with torch.no_grad():
        pixels = torch.stack([loaded.preprocess(file.open()) for file in files])
        expected = loaded.model.encode_image(pixels)
    for batch_size, num_workers in ((2, 0), (8, 0), (3, 1)):
        embedder = Embedder(loaded, Topology.current(), batch_size=batch_size, num_workers=num_workers)
        torch.testing.assert_close(embedder.image_files(files).features, expected)


@pytest.mark.parametrize("data", [b"no image", None])
def test_what_is_no_image_is_named_and_spoils_no_other(
    tmp_path: Path, photo: Path, data: bytes | None
) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(photo.read_bytes()[:300] if data is None else data)
    embedder = Embedder(tiny_loaded(), Topology.current(), batch_size=2, num_workers=0)
    for bad in (ImageFile(str(path)), ImageFile(str(path), (0.0, 0.0, 30.0, 30.0)), ImageFile("no/file.png")):
        good = ImageFile(str(photo))
        found = embedder.image_files([bad, good, bad])
        torch.testing.assert_close(found.features[1], embedder.image_files([good]).features[0])
        assert [record.get("unreadable", "").split(":")[0] for record in found.records] == [
            f"{bad.path} cannot be evaluated",
            "",
            f"{bad.path} cannot be evaluated",
        ]
