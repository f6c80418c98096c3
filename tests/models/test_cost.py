"""Costs of towers beside what a real model has."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlm.models import (
    CausalTextSpec,
    DualEncoder,
    ImageTowerSpec,
    ModelSpec,
    blocks_of,
    build_model,
    recompute,
    tower_costs,
)

VIT_B32 = {"depth": 12, "embed_dim": 768, "num_heads": 12, "patch_size": 32}


def spec(*, image_size: int, image: dict[str, int], **text: int) -> ModelSpec:
    mean = (0.5, 0.5, 0.5)
    return ModelSpec(
        embed_dim=512 if text["width"] == 512 else 16,
        init_logit_scale=14.0,
        image=ImageTowerSpec(
            name="vit_base_patch32_clip_224",
            image_size=image_size,
            mean=mean,
            std=mean,
            pretrained=False,
            options=image,
        ),
        text=CausalTextSpec(context_length=77, vocab_size=300, eot_id=299, activation="gelu", **text),
    )


def test_vit_b32_takes_the_operations_that_are_published() -> None:
    costs = tower_costs(spec(image_size=224, image={}, width=512, layers=12, heads=8), text_length=77)
    assert costs["image"].forward_flops == pytest.approx(8.82e9, rel=0.001)
    assert costs["text"].forward_flops == pytest.approx(5.96e9, rel=0.001)
    assert costs["image"].parameters == pytest.approx(87.85e6, rel=0.001)


def small_spec() -> ModelSpec:
    image = {"depth": 3, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    return spec(image_size=32, image=image, width=16, layers=3, heads=2)


def encoders(model: DualEncoder) -> dict[str, Callable[[], Tensor]]:
    """Each tower over three rows."""
    return {
        "image": lambda: model.encode_image(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)),
        "text": lambda: model.encode_text(torch.zeros(3, 20, dtype=torch.int64)),
    }


def kept_bytes(model: DualEncoder, encode: Callable[[], Tensor]) -> int:
    """What autograd keeps for the backward, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = encode()
    assert out.requires_grad
    return sum(kept.values())


def test_costs_are_those_of_a_real_model() -> None:
    costs = tower_costs(small_spec(), text_length=20)
    model = build_model(small_spec())
    for name, encode in encoders(model).items():
        # Of CPUs' fused attention torch counts nothing.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encode()
        assert counter.get_total_flops() == pytest.approx(3 * costs[name].forward_flops, rel=0.02)
        assert 3 * costs[name].activation_bytes == pytest.approx(kept_bytes(model, encode), rel=0.15)
        assert costs[name].recomputed_flops == costs[name].recomputed_bytes == 0
    total = sum(cost.parameters for cost in costs.values())
    assert total == sum(p.numel() for p in model.parameters()) - 1  # the temperature belongs to none


def test_checkpointed_blocks_cost_their_inputs_one_of_them_and_another_forward() -> None:
    plain = tower_costs(small_spec(), text_length=20)
    costs = tower_costs(small_spec(), text_length=20, activation_checkpointing=True)
    for name, cost in costs.items():
        model = build_model(small_spec())
        last, *others = reversed(list(blocks_of(getattr(model, name))))
        for block in others:
            recompute(block)
        one_whole = kept_bytes(model, encoders(model)[name])
        recompute(last)
        inputs_alone = kept_bytes(model, encoders(model)[name])
        assert 3 * cost.activation_bytes == pytest.approx(inputs_alone, rel=0.1)
        assert 3 * cost.recomputed_bytes == pytest.approx(one_whole - inputs_alone, rel=0.15)
        assert cost.activation_bytes + cost.recomputed_bytes < 0.6 * plain[name].activation_bytes

        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encoders(model)[name]().sum().backward()
        again = counter.get_total_flops()
        model = build_model(small_spec())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encoders(model)[name]().sum().backward()
        assert again - counter.get_total_flops() == pytest.approx(3 * cost.recomputed_flops, rel=0.02)
        # The last product of a block is not needed again.
        assert 0.5 * cost.forward_flops < cost.recomputed_flops < 0.8 * cost.forward_flops
        assert cost.forward_flops == plain[name].forward_flops
