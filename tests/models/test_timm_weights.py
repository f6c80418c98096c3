import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_model import tiny_mapping
from torch import nn

from vlm.errors import CheckpointError, ConfigError
from vlm.models import ImageTowerSpec, ModelSpec, build_model
from vlm.models.image_tower import TimmTower
from vlm.models.timm_weights import check_hub_weights

OPTIONS = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def tower_spec(**image: Any) -> ImageTowerSpec:
    values = tiny_mapping()
    values["image"] |= image
    return ModelSpec.from_mapping(values).image


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A checkpoint as timm's trainer writes it, with a classifier."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=16, **OPTIONS).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "model_best.pth.tar"
    torch.save({"arch": "vit_tiny_patch16_224", "epoch": 3, "state_dict": model.state_dict()}, path)
    return path, model


@torch.no_grad()
def test_a_trainers_file_gives_the_features_it_had(trained: tuple[Path, nn.Module]) -> None:
    path, model = trained
    image = torch.randn(2, 3, 16, 16)
    expected = model.forward_head(model.forward_features(image), pre_logits=True)  # type: ignore[operator]
    tower = TimmTower(tower_spec(pretrained=str(path))).eval()
    torch.testing.assert_close(tower(image), expected)


def test_averaged_weights_come_first(trained: tuple[Path, nn.Module]) -> None:
    path, model = trained
    averaged = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": averaged}, path)
    tower = TimmTower(tower_spec(pretrained=str(path)))
    assert torch.equal(tower.trunk.get_parameter("cls_token"), averaged["cls_token"])


def test_the_model_as_built_does_not_ask_for_the_file_again(trained: tuple[Path, nn.Module]) -> None:
    values = tiny_mapping()
    values["image"]["pretrained"] = str(trained[0])
    model = build_model(ModelSpec.from_mapping(values))
    trained[0].unlink()
    assert model.spec.image.pretrained is False
    build_model(model.spec)


def test_positions_are_resized_only_when_asked(trained: tuple[Path, nn.Module]) -> None:
    spec = tower_spec(pretrained=str(trained[0]), image_size=32)
    with pytest.raises(ConfigError, match=r"\(1, 5, 16\), .* needs \(1, 17, 16\).*resize_positions"):
        TimmTower(spec)
    positions = TimmTower(spec, resize_positions=True).trunk.get_parameter("pos_embed")
    assert torch.equal(positions[:, 0], trained[1].get_parameter("pos_embed")[:, 0])


def test_weights_of_another_model_are_listed(trained: tuple[Path, nn.Module]) -> None:
    deeper = tower_spec(pretrained=str(trained[0]), options={**OPTIONS, "depth": 2})
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.proj\.bias +\(16,\) +missing"):
        TimmTower(deeper)
    with pytest.raises(CheckpointError, match=r"conv1\.weight +\(64, 3, 7, 7\) +missing"):
        TimmTower(tower_spec(name="resnet18", pretrained=str(trained[0]), options={}, image_size=32))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.image\.pretrained='/no/such' does not exist"):
        TimmTower(tower_spec(pretrained="/no/such"))


def hub_folder(folder: Path, model: nn.Module, name: str, **config: Any) -> Path:
    """A folder as timm's `save_for_hf` writes it."""
    save_file(model.state_dict(), folder / "model.safetensors")
    stated = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "input_size": [3, 16, 16]} | config
    content = {"architecture": name, "num_classes": 5, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_folder_whose_facts_are_those_of_the_spec_is_loaded(
    trained: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path, trained[1], "vit_tiny_patch16_224")
    tower = TimmTower(tower_spec(pretrained=str(folder)))
    assert torch.equal(tower.trunk.get_parameter("cls_token"), trained[1].get_parameter("cls_token"))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "vit_tiny_patch16_224",
            {"mean": [0.5, 0.5, 0.5]},
            r"mean=\[0\.5, 0\.4, 0\.3\], .* \[0\.5, 0\.5, 0\.5\]",
        ),
        (
            "vit_tiny_patch16_224",
            {"std": [0.5, 0.5, 0.5]},
            r"std=\[0\.2, 0\.25, 0\.3\], .* \[0\.5, 0\.5, 0\.5\]",
        ),
        (
            "vit_base_patch32_clip_quickgelu_224",
            {},
            r"is gelu, .* with quick_gelu; .*act_layer=quick",
        ),
    ],
)
def test_a_folder_that_contradicts_the_spec_is_refused(
    trained: tuple[Path, nn.Module], tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    folder = hub_folder(tmp_path, trained[1], name, **config)
    with pytest.raises(ConfigError, match=message):
        TimmTower(tower_spec(pretrained=str(folder)))


OPENAI, QUICK, LAION = (
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch32_clip_quickgelu_224.openai",
    "vit_base_patch32_clip_224.laion2b",
)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CLIP_MEAN = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        # timm gives these weights, trained with QuickGELU, to a model with GELU.
        ({"name": OPENAI}, "is gelu, .* trained with quick_gelu"),
        (
            {"name": QUICK, "options": {"act_layer": "gelu"}},
            "quick_gelu",
        ),
        ({"name": LAION, "mean": [0.5, 0.5, 0.5]}, r"model\.image\.mean="),
        (
            {"name": LAION, "image_size": 256},
            "embeddings for 224; .*resize_pos",
        ),
    ],
)
def test_hub_weights_are_checked_before_they_are_loaded(image: dict[str, Any], message: str) -> None:
    spec = tower_spec(**{"image_size": 224, "options": {}, "pretrained": True, **CLIP_MEAN, **image})
    with pytest.raises(ConfigError, match=message):
        TimmTower(spec)


@pytest.mark.parametrize(
    "image",
    [
        {"name": QUICK},
        {"name": OPENAI, "options": {"act_layer": "quick_gelu"}},
        {"name": LAION},
        {"name": "resnet18.a1_in1k", "image_size": 64, **IMAGENET},
    ],
)
def test_hub_weights_under_their_own_facts_pass(image: dict[str, Any]) -> None:
    spec = tower_spec(**{"image_size": 224, "options": {}, "pretrained": True, **CLIP_MEAN, **image})
    arguments = {} if "resnet" in spec.name else {"img_size": spec.image_size}
    with torch.device("meta"):
        trunk = timm.create_model(spec.name, num_classes=0, **spec.options, **arguments)
        native = timm.create_model(spec.name, num_classes=0)
    check_hub_weights(trunk, native, spec, resize_positions=False)
