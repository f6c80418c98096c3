"""Learning rates that fall with the number of blocks above a parameter."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import tiny_mapping
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model, described
from vlm.training import AdamW
from vlm.training.outside import Outside

LR, IMAGE, TEXT = 0.01, 0.5, 0.1

# Blocks above, for two blocks in each tower.
VIT = {
    "cls_token": 2,
    "pos_embed": 2,
    "patch_embed.proj.weight": 2,
    "patch_embed.proj.bias": 2,
    **{
        f"blocks.{block}.{part}.{kind}": 1 - block
        for block in (0, 1)
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    },
    "norm.weight": 0,
    "norm.bias": 0,
}
CAUSAL = {
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    **{
        f"blocks.{block}.{part}.{kind}": 1 - block
        for block in (0, 1)
        for part in ("ln_1", "attn.in_proj", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    },
    "ln_final.weight": 0,
    "ln_final.bias": 0,
}
BERT = {
    **{
        f"encoder.embeddings.{part}": 2
        for part in (
            "word_embeddings.weight",
            "position_embeddings.weight",
            "token_type_embeddings.weight",
            "LayerNorm.weight",
            "LayerNorm.bias",
        )
    },
    **{
        f"encoder.encoder.layer.{block}.{part}.{kind}": 1 - block
        for block in (0, 1)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
        for kind in ("weight", "bias")
    },
}
ABOVE = ("image_projection.weight", "text_projection.weight", "logit_scale")


def recipe(image: float = 1.0, text: float = 1.0) -> AdamW:
    return AdamW(
        lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, image_layer_decay=image, text_layer_decay=text
    )


def model_of(kind: str = "causal", *, depth: int = 2, **image: Any) -> DualEncoder:
    values = tiny_mapping(kind)
    values["image"]["options"]["depth"] = depth
    values["image"] |= image
    return build_model(ModelSpec.from_mapping(values))


def rates(model: DualEncoder, adamw: AdamW) -> dict[str, float]:
    scales = adamw.lr_scales(model)
    outside = Outside(model).optimizer(adamw, torch.device("cpu"))
    optimizer = adamw.build(dict(model.named_parameters()), scales)
    groups = [*optimizer.param_groups, *outside.param_groups]
    rate_of = {p: group["lr"] for group in groups for p in group["params"]}
    assert all(group["lr"] == pytest.approx(LR * group["lr_scale"]) for group in groups)
    named = {**dict(model.named_parameters()), "logit_scale": model.logit_scale}
    return {name: rate_of[p] for name, p in named.items()}


@pytest.mark.parametrize(("kind", "text"), [("causal", CAUSAL), ("transformers", BERT)])
def test_the_rate_of_every_parameter(kind: str, text: dict[str, int]) -> None:
    expected = {f"image.trunk.{name}": LR * IMAGE**above for name, above in VIT.items()}
    expected |= {f"text.{name}": LR * TEXT**above for name, above in text.items()}
    expected |= dict.fromkeys(ABOVE, LR)
    assert rates(model_of(kind), recipe(IMAGE, TEXT)) == pytest.approx(expected)


def test_one_tower_may_fall_alone() -> None:
    found = rates(model_of(), recipe(image=IMAGE))
    assert {found[f"text.{name}"] for name in CAUSAL} == {LR}
    assert found["image.trunk.cls_token"] == pytest.approx(LR * IMAGE**2)


def test_a_pooling_head_stands_behind_the_last_block() -> None:
    """timm counts it as a layer of its own, which would lower the last block too."""
    options = {"patch_size": 8, "embed_dim": 16, "num_heads": 2, "global_pool": "map", "class_token": False}
    found = rates(model_of(options=options | {"depth": 2}), recipe(image=IMAGE))
    assert found["image.trunk.attn_pool.q.weight"] == LR
    assert found["image.trunk.blocks.1.norm1.weight"] == LR
    assert found["image.trunk.pos_embed"] == pytest.approx(LR * IMAGE**2)


def test_the_blocks_of_a_resnet() -> None:
    options = {"channels": [8, 8, 16, 16], "stem_width": 8, "norm_layer": "groupnorm1"}
    found = rates(model_of(name="resnet10t", options=options), recipe(image=IMAGE))
    above = {"conv1.0": 4, "layer1.0.conv1": 3, "layer3.0.conv1": 1, "layer4.0.conv2": 0}
    expected = {f"image.trunk.{name}.weight": LR * IMAGE**number for name, number in above.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_without_decay_there_are_two_groups() -> None:
    model = model_of()
    assert recipe().lr_scales(model) == {}
    matrices, others = recipe().build(dict(model.named_parameters())).param_groups
    assert [id(p) for p in matrices["params"]] == [id(p) for p in model.parameters() if p.ndim >= 2]
    assert [id(p) for p in others["params"]] == [id(p) for p in model.parameters() if p.ndim < 2]
    assert [(g["lr"], g["weight_decay"]) for g in (matrices, others)] == [(LR, 0.2), (LR, 0.0)]


def test_weight_decay_spares_the_same_parameters() -> None:
    model = model_of()
    optimizer = recipe(IMAGE, TEXT).build(
        dict(model.named_parameters()), recipe(IMAGE, TEXT).lr_scales(model)
    )
    spared = {p for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert spared == {p for p in model.parameters() if p.ndim < 2}


@pytest.mark.parametrize(
    ("key", "values", "model"),
    [
        ("text_layer_decay=0.1.*BagOfWords", {"text": TEXT}, {"kind": "bag_of_words"}),
        ("image_layer_decay=0.5.*MetaFormer", {"image": IMAGE}, {"name": "poolformerv2_s12", "options": {}}),
    ],
)
def test_a_tower_without_an_order_of_blocks_is_refused(
    key: str, values: dict[str, float], model: dict[str, Any]
) -> None:
    spec = tiny_mapping(model.pop("kind", "causal"))
    spec["image"] |= model | ({"image_size": 64} if model else {})
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}.*set it to 1\.0"):
        recipe(**values).lr_scales(described(ModelSpec.from_mapping(spec)))


@pytest.mark.parametrize("value", [0.0, 1.1])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_bad_number_is_refused_by_key(tower: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.{tower}_layer_decay={value}"):
        recipe(**{tower: value})


def test_a_step_moves_each_block_by_its_share(toy: Path) -> None:
    """Of the first step of AdamW, weight decay included, the learning rate is a factor."""
    one_step = ["suite=none", "trainer.max_steps=1", "schedule.warmup_steps=0", "model.text.layers=2"]

    def weights(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        run = train_from(composed(tiny_overrides(toy, f"run.name={name}", *one_step, *overrides)))
        with (run / "metrics.csv").open(newline="") as file:
            lrs.append([row["train/lr"] for row in csv.DictReader(file)])
        return load_file(run / "checkpoints" / "step_00000001" / "model.safetensors")

    lrs: list[list[str]] = []
    whole = weights("all_alike")
    decayed = weights("falling", "optimizer.image_layer_decay=0.5", "optimizer.text_layer_decay=0.1")
    before = weights("unmoved", "optimizer.lr=1e-30")
    assert lrs[0] == lrs[1]
    shares = {"text.token_embedding.weight": 0.01, "text.blocks.0.attn.in_proj.weight": 0.1}
    shares |= {"text.blocks.1.ln_1.bias": 1.0, "text_projection.weight": 1.0, "logit_scale": 1.0}
    shares |= {"image.trunk.conv1.0.weight": 0.5**4, "image.trunk.layer3.0.bn2.weight": 0.5}
    for name, share in shares.items():
        moved = whole[name] - before[name]
        assert moved.abs().max() > 1e-4
        torch.testing.assert_close(
            decayed[name] - before[name], share * moved, rtol=1e-3, atol=2e-7, msg=name
        )


def test_another_decay_at_resume_has_to_be_confirmed(toy: Path) -> None:
    def train(*overrides: str) -> Path:
        words = ["run.name=decay_changes", "suite=none", "run.resume=true", *overrides]
        return train_from(composed(tiny_overrides(toy, *words)))

    train("trainer.max_steps=4")
    longer = "run.accept_changes=[trainer.max_steps"
    with pytest.raises(ConfigError, match=r"optimizer\.image_layer_decay: was 1\.0, is 0\.5"):
        train(f"{longer}]", "optimizer.image_layer_decay=0.5")
    train(f"{longer},optimizer.image_layer_decay]", "optimizer.image_layer_decay=0.5")
