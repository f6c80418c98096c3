import pytest
import torch
from tiny_model import tiny_mapping

from vlm.errors import ConfigError
from vlm.models import ImageTowerSpec, ModelSpec
from vlm.models.image_tower import TimmTower


def spec(**image: object) -> ImageTowerSpec:
    values = tiny_mapping()
    values["image"] |= image
    return ModelSpec.from_mapping(values).image


FAMILIES = [
    ("vit_tiny_patch16_224", 32, 192),
    ("resnet18", 48, 512),
    ("convnext_atto", 64, 320),
    ("mobilenetv4_conv_small", 64, 1280),
    ("swin_tiny_patch4_window7_224", 56, 768),
    ("vgg11", 64, 4096),
]


@pytest.mark.parametrize(("name", "size", "width"), FAMILIES)
def test_a_tower_of_any_family_gives_one_vector_of_its_width(name: str, size: int, width: int) -> None:
    with torch.device("meta"):
        tower = TimmTower(spec(name=name, image_size=size, options={}))
        features = tower(torch.empty(2, 3, size, size, dtype=torch.uint8))
    assert tower.width == width
    assert features.shape == (2, width)


def test_measuring_the_width_leaves_no_trace() -> None:
    tower = TimmTower(spec(name="resnet18", image_size=32, options={}))
    assert tower.training
    assert all(module.training for module in tower.modules())
    assert torch.equal(tower.trunk.get_buffer("bn1.running_mean"), torch.zeros(64))


def test_options_reach_timm() -> None:
    trunk = TimmTower(spec(options={"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3})).trunk
    assert trunk.get_parameter("pos_embed").shape == (1, 17, 24)
    assert len(trunk.get_submodule("blocks")._modules) == 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            {"name": "vit_tiny_patch16_225"},
            r"model\.image\.name='vit_tiny_patch16_225' .*vit_tiny_patch16_224",
        ),
        (
            {"name": "vit_tiny_patch16_224.nobody"},
            r"model\.image\.name='vit_tiny_patch16_224.nobody'.*nobody",
        ),
        ({"options": {"pach_size": 8}}, r"model\.image\.options=.*pach_size"),
        ({"options": {"embed_dim": 17, "num_heads": 2}}, r"model\.image\.options=.*divisible"),
        ({"image_size": 20}, r"model\.image\.image_size=20 is not a multiple of the patch size 8"),
        ({"image_size": 100, "options": {}}, r"model\.image\.image_size=100 is not a multiple of .* 16"),
        (
            {"name": "resnet18", "image_size": 20, "options": {"patch_size": 8}},
            r"model\.image\.options=.*patch",
        ),
        ({"name": "maxvit_tiny_tf_224", "image_size": 112, "options": {}}, r"image_size=112.*divisible"),
    ],
)
def test_a_mistake_is_one_message_with_the_key(image: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        TimmTower(spec(**image))
