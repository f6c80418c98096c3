"""Costs of towers beside what a real model has."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlm.models import CausalTextSpec, ImageTowerSpec, ModelSpec, build_model, tower_costs

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


def test_costs_are_those_of_a_real_model() -> None:
    small = spec(
        image_size=32,
        image={"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
        width=16,
        layers=2,
        heads=2,
    )
    costs = tower_costs(small, text_length=20)
    model = build_model(small)
    inputs = {
        "image": torch.zeros(3, 3, 32, 32, dtype=torch.uint8),
        "text": torch.zeros(3, 20, dtype=torch.int64),
    }
    for name, encode in {"image": model.encode_image, "text": model.encode_text}.items():
        # Of CPUs' fused attention torch counts nothing.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encode(inputs[name])
        assert counter.get_total_flops() == pytest.approx(3 * costs[name].forward_flops, rel=0.02)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, int] = {}

        def keep(
            tensor: torch.Tensor, weights: set[int] = weights, kept: dict[int, int] = kept
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = encode(inputs[name])
        assert out.requires_grad
        assert 3 * costs[name].activation_bytes == pytest.approx(sum(kept.values()), rel=0.15)
    total = sum(cost.parameters for cost in costs.values())
    assert total == sum(p.numel() for p in model.parameters()) - 1  # the temperature belongs to none
