"""Patch dropout is timm's; what the project promises of it."""

import pytest
import torch
from tiny_model import tiny_mapping

from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model, described, tower_costs

PATCHES = 16


def spec(**options: object) -> ModelSpec:
    mapping = tiny_mapping()
    mapping["image"] |= {"image_size": 32, "options": mapping["image"]["options"] | {"depth": 2} | options}
    return ModelSpec.from_mapping(mapping)


def model_of(**options: object) -> DualEncoder:
    torch.manual_seed(0)
    return build_model(spec(**options))


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)


def tokens_of_blocks(model: DualEncoder) -> int:
    seen = []
    block = model.image.trunk.get_submodule("blocks.0")
    handle = block.register_forward_hook(lambda _, inputs, out: seen.append(out.shape[1]))
    model.encode_image(images())
    handle.remove()
    return seen[0]


def test_blocks_see_the_kept_patches_in_training_and_all_in_an_evaluation() -> None:
    model = model_of(patch_drop_rate=0.75)
    assert tokens_of_blocks(model) == 1 + PATCHES // 4
    assert tokens_of_blocks(model.eval()) == 1 + PATCHES


def test_the_kept_patches_are_drawn_from_the_seeded_state() -> None:
    model = model_of(patch_drop_rate=0.5)
    vectors = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        vectors.append(model.encode_image(images()))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_an_evaluation_is_that_of_the_model_without() -> None:
    dropping, whole = model_of(patch_drop_rate=0.5), model_of()
    whole.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping.eval().encode_image(images()), whole.eval().encode_image(images()))


def test_a_family_without_it_says_so() -> None:
    mapping = tiny_mapping()
    mapping["image"] |= {"name": "resnet18", "image_size": 32, "options": {"patch_drop_rate": 0.5}}
    with pytest.raises(ConfigError, match=r"model\.image\.options=.*patch_drop_rate"):
        described(ModelSpec.from_mapping(mapping))


def test_operations_and_memory_are_counted_for_the_kept_patches() -> None:
    half, whole = (
        tower_costs(spec(patch_drop_rate=rate, embed_dim=128), text_length=8)["image"] for rate in (0.5, 0.0)
    )
    patch_embedding = 2 * PATCHES * 3 * 8 * 8 * 128
    kept = (1 + PATCHES // 2) / (1 + PATCHES)
    in_blocks = [cost.forward_flops - patch_embedding for cost in (half, whole)]
    # Attention alone falls faster than the number of patches.
    assert 0.9 * kept < in_blocks[0] / in_blocks[1] < kept
    assert half.activation_bytes < 0.7 * whole.activation_bytes
