"""Against weights that open_clip wrote: `open_clip_tiny/make.py` made them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from exportable import CLIP_VIT, checkpoint
from foreign_models import NOTHING, TEXTS, write_tokenizer
from safetensors.torch import load_file

import vlm
from vlm.errors import ConfigError
from vlm.inference.export import export_model
from vlm.inference.foreign import import_model

TINY = Path(__file__).parent / "open_clip_tiny"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
RESNET = {"name": "resnet10t", "image_size": 32, "options": {}}


def exported(source: Path, out: Path) -> dict[str, Any]:
    """What the export says of its check."""
    export_model(str(source), out, format="open_clip", weights="model")
    said: dict[str, Any] = json.loads((out / "export.json").read_text())
    return said


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """The tiny model of open_clip as a checkpoint."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(TINY / name, source)
    write_tokenizer(source)
    import_model(source, tmp_path / "imported", NOTHING)
    return tmp_path / "imported"


def test_what_was_imported_is_exported_as_open_clip_wrote_it(imported: Path, tmp_path: Path) -> None:
    exported(imported, tmp_path / "out")
    before, after = load_file(TINY / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.shape == after[name].shape
        assert torch.equal(value, after[name])
    said, was = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path / "out", TINY))
    assert said["preprocess_cfg"] == was["preprocess_cfg"]
    assert said["model_cfg"]["embed_dim"] == was["model_cfg"]["embed_dim"]
    assert said["model_cfg"]["vision_cfg"] == was["model_cfg"]["vision_cfg"] | {"mlp_ratio": 4.0}
    assert was["model_cfg"]["text_cfg"].items() <= said["model_cfg"]["text_cfg"].items()


@torch.no_grad()
def test_what_is_imported_again_is_the_source(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", init_logit_bias=-3.0, preprocess={"resize_mode": "longest"})
    exported(source, tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "again", NOTHING)
    before, after = vlm.load(source), vlm.load(tmp_path / "again")
    assert before.tokenizer is not None
    assert after.tokenizer is not None
    assert [after.tokenizer.encode(text) for text in TEXTS] == [
        before.tokenizer.encode(text) for text in TEXTS
    ]
    weights = after.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.model.state_dict().items())
    assert after.preprocess == before.preprocess


@torch.no_grad()
def test_other_towers_go_through_timm(tmp_path: Path) -> None:
    """Built here as open_clip builds its tower of timm: by name, its head taken off, a linear projection."""
    source = checkpoint(tmp_path / "source", image=RESNET)
    exported(source, tmp_path / "out")
    vision = json.loads((tmp_path / "out" / CONFIG).read_text())["model_cfg"]["vision_cfg"]
    trunk = timm.create_model(vision["timm_model_name"])
    trunk.reset_classifier(0)
    weights = load_file(tmp_path / "out" / WEIGHTS)
    prefix = "visual.trunk."
    trunk.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    loaded = vlm.load(source)
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    vector = trunk.eval()(loaded.model.image.normalised(image)) @ weights["visual.head.proj.weight"].T
    other = torch.nn.functional.normalize(vector, dim=-1)
    torch.testing.assert_close(other, loaded.model.encode_image(image), atol=1e-5, rtol=0)
    assert (vision["timm_pool"], vision["timm_proj"], vision["image_size"]) == ("", "linear", 32)
    assert "text_projection" in weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": RESNET | {"options": {"stem_width": 8}}}, "is another than timm's without options"),
        (
            {"image": {"name": "vit_tiny_patch16_224", "image_size": 32, "options": {}}},
            r"pos_embed of shape \(1, 5,",
        ),
        ({"image": {"name": "mobilenetv3_small_050", "image_size": 32, "options": {}}}, "gives 1024 numbers"),
        ({"text": {"activation": "quick_gelu"}}, "activation gelu of images beside quick_gelu of texts"),
        ({"text": {"activation": "gelu_tanh"}}, "activation gelu_tanh of the text tower"),
        ({"text": {"pooling": "class"}}, r"model.text.pooling=class\); format=onnx, safetensors can"),
        ({"text": None}, "no text tower"),
        (
            {"preprocess": {"interpolation": "lanczos"}},
            "interpolation=lanczos; open_clip has bicubic",
        ),
        (
            {"preprocess": {"resize_mode": "longest", "background": (255, 0, 0)}},
            r"background \[255, 0, 0\], which is no grey",
        ),
    ],
)
def test_a_model_that_open_clip_cannot_hold_is_refused_with_its_part(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = checkpoint(tmp_path / "source", **changes)
    with pytest.raises(ConfigError, match=message):
        exported(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


QUICK = {"options": CLIP_VIT["options"] | {"act_layer": "quick_gelu"}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image": QUICK, "text": {"activation": "quick_gelu"}, "init_logit_bias": -10.0},
        {"image": RESNET},
        {"image": {"name": "vit_tiny_patch16_224", "image_size": 224, "options": {"drop_path_rate": 0.1}}},
    ],
)
def test_open_clip_gives_the_vectors_of_the_source(tmp_path: Path, changes: dict[str, Any]) -> None:
    pytest.importorskip("open_clip", reason="open_clip is not installed; the other tests build its towers")
    check = exported(checkpoint(tmp_path / "source", **changes), tmp_path / "out")["check"]
    assert max(check["images"], check["texts"]) < 1e-5
    assert check["against"].startswith("open_clip")
