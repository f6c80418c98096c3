import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_gloo
from small_shards import write_shards
from tiny import save_tiny, tiny_loaded, write_tiny_shards

from vlm.data import Preprocess, open_shards, read_images
from vlm.distributed import Topology
from vlm.errors import ConfigError, DataError, VlmError
from vlm.inference import embed_shards as module
from vlm.inference.embed_shards import PictureTower, embed_shards
from vlm.inference.features import FeatureSet, Manifest
from vlm.models import ImageTowerSpec


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "checkpoint")
    write_tiny_shards(tmp_path / "shards", num_samples=13)
    return tmp_path


def embed(folder: str | Path, *, out: str = "features", shards: str = "shards", **changes: Any) -> Manifest:
    tower = changes.pop("tower", None) or PictureTower.of_run(Path(folder, "checkpoint"), device="cpu")
    values = {"batch_size": 4, "num_workers": 0, "bf16": False} | changes
    pattern = str(Path(folder, shards, "*.tar"))
    return embed_shards(tower, pattern, Path(folder, out), Topology.current(), **values)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def on_ranks(folder: str) -> int | None:
    return embed(folder, out="by_ranks").num_broken


def test_features_are_those_of_each_picture_alone(place: Path) -> None:
    embed(place)
    features = FeatureSet.open(place / "features", key="features")
    loaded = tiny_loaded()
    images = read_images(open_shards(str(place / "shards" / "*.tar"), key="x"), range(13))
    with torch.no_grad():
        expected = [loaded.model.encode_image(loaded.preprocess(image)[None])[0] for image in images]
    shards = features.manifest.shards
    found = torch.cat([features.rows(number, 0, shard.rows) for number, shard in enumerate(shards)])
    torch.testing.assert_close(found.float(), torch.stack(expected), atol=1e-3, rtol=0)
    assert [shard.name for shard in shards] == ["00000", "00001", "00002"]
    content = json.loads((place / "features" / "manifest.json").read_text())
    assert content["complete"]
    assert content["normalised"]
    assert (content["dim"], content["num_rows"], content["num_broken"]) == (8, 13, 0)


def test_ranks_and_workers_change_no_byte(place: Path) -> None:
    embed(place)
    alone = contents(place / "features")
    embed(place, out="by_workers", num_workers=2)
    assert contents(place / "by_workers") == alone
    (place / "gloo").mkdir()
    assert run_gloo(on_ranks, 2, place / "gloo", str(place)) == [0, 0]
    assert contents(place / "by_ranks") == alone


def test_what_was_killed_goes_on_to_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(place, out="whole")
    known, calls = module.write_features, 0

    def dies(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        known(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_features", dies)
        with pytest.raises(KeyboardInterrupt):
            embed(place)
    (place / "features" / ".00001.safetensors.x.partial").touch()  # of a process that was killed as it wrote
    assert not json.loads((place / "features" / "manifest.json").read_text())["complete"]
    with pytest.raises(DataError, match=r"features=.* is incomplete: 2 of 3 shards are missing"):
        FeatureSet.open(place / "features", key="features")
    first = (place / "features" / "00000.safetensors").stat().st_mtime_ns
    embed(place)
    assert contents(place / "features") == contents(place / "whole")
    assert (place / "features" / "00000.safetensors").stat().st_mtime_ns == first


def test_a_broken_picture_is_counted_and_its_row_is_zero(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change = {"000002": {"png": b"no picture"}, "000005": {"txt": b"a caption alone"}}
    write_shards(place / "broken", [4, 3], change=change)
    assert embed(place, shards="broken").num_broken == 2
    features = FeatureSet.open(place / "features", key="features")
    assert (features.broken(0).tolist(), features.broken(1).tolist()) == ([2], [1])
    lengths = torch.cat([features.rows(0, 0, 4), features.rows(1, 0, 3)]).float().norm(dim=1)
    assert lengths[[2, 5]].tolist() == [0, 0]
    assert (lengths[[0, 1, 3, 4, 6]] > 0.99).all()
    assert "00000.tar/000002 are zero" in caplog.text


def test_shards_of_one_name_in_two_folders_have_files_of_their_own(place: Path) -> None:
    write_tiny_shards(place / "shards" / "more", num_samples=2)
    tower = PictureTower.of_run(place / "checkpoint", device="cpu")
    patterns = [str(place / "shards" / "*.tar"), str(place / "shards" / "more" / "*.tar")]
    manifest = embed_shards(
        tower, patterns, place / "features", Topology.current(), batch_size=4, num_workers=0, bf16=False
    )
    assert [shard.name for shard in manifest.shards] == ["00000_00000", "00001", "00002", "00003_00000"]


def test_other_work_in_the_same_folder_is_refused(place: Path) -> None:
    embed(place)
    tower = PictureTower.of_run(place / "checkpoint", device="cpu")
    other = Preprocess.from_mapping(tower.preprocess.to_mapping() | {"resize_mode": "shortest"})
    write_tiny_shards(place / "more", num_samples=14)

    def changed(**values: Any) -> PictureTower:
        kept = {name: getattr(tower, name) for name in ("encode", "preprocess", "dim", "device", "identity")}
        return PictureTower(**kept | values)

    for changes, message in (
        ({"tower": changed(identity=tower.identity | {"sha256": "f" * 64})}, "another model: sha256"),
        ({"tower": changed(preprocess=other)}, "another preprocessing: .*squash.*shortest"),
        ({"tower": changed(dim=9)}, "another dimension: 8, asked for was 9"),
        ({"bf16": True}, "another precision: bf16=false"),
        ({"shards": "more"}, "another data: 13 samples in 3 shards .* 14 samples"),
    ):
        before = contents(place / "features")
        with pytest.raises(ConfigError, match=f"out=.* holds features of {message}"):
            embed(place, **changes)
        assert contents(place / "features") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "features" / "notes.txt").touch(), "is not empty and holds no features"),
        (lambda folder: (folder / "features" / "manifest.json").write_text("{}"), "is not the manifest"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(place: Path, change: Any, message: str) -> None:
    (place / "features").mkdir()
    change(place)
    with pytest.raises(VlmError, match=message):
        embed(place)


def test_a_timm_tower_alone_gives_its_own_unit_vectors(place: Path) -> None:
    options = {"channels": [8, 8, 16, 16], "stem_width": 8, "norm_layer": "groupnorm1"}
    import timm  # after vlm, which makes torchvision importable on a CPU

    resnet = timm.create_model("resnet10t", **options)
    torch.save({"state_dict": resnet.state_dict()}, place / "resnet.pth")
    half = (0.5, 0.5, 0.5)
    weights = str(place / "resnet.pth")
    spec = ImageTowerSpec(
        name="resnet10t", image_size=16, mean=half, std=half, pretrained=weights, options=options
    )
    preprocess = Preprocess(
        image_size=16, background=[255, 255, 255], resize_mode="squash", interpolation="box"
    )
    tower = PictureTower.of_timm(spec, preprocess, device="cpu")
    manifest = embed(place, tower=tower)
    assert (manifest.dim, len(manifest.model["sha256"])) == (16, 64)
    rows = FeatureSet.open(place / "features", key="features").rows(0, 0, 5).float()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5), atol=2e-3, rtol=0)


def test_a_missing_shard_stops_and_is_named(place: Path) -> None:
    tower = PictureTower.of_run(place / "checkpoint", device="cpu")
    pattern = [str(place / "shards" / f"{number:05d}.tar") for number in range(4)]
    with pytest.raises(DataError, match=r"data\.shards: .*00003\.tar' does not exist"):
        embed_shards(
            tower, pattern, place / "features", Topology.current(), batch_size=4, num_workers=0, bf16=False
        )
