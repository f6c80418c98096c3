"""What transformers loads gives the vectors of the source; what is imported again is the source."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exportable import CLIP_VIT, checkpoint
from foreign_models import NOTHING, TEXTS, clip_folder, siglip_folder, unit
from PIL import Image
from safetensors.torch import load_file
from tiny import save_tiny
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor

import vlm
from vlm.errors import ConfigError
from vlm.inference.export import export_model
from vlm.inference.foreign import import_model

SENTENCES = [
    "a red square",
    "灰色的正方形",
    "the <end_of_text> of <|endoftext|> a text",
    "",
    "a green square " * 30,
]
CLIP_OPTIONS = CLIP_VIT["options"]
RESNET = {"name": "resnet10t", "image_size": 32, "options": {}}


def exported(source: Path, out: Path) -> vlm.inference.Loaded:
    """The source, once it is exported to `out`."""
    export_model(str(source), out, format="transformers", weights="model")
    return vlm.load(source)


def picture(side: int) -> Image.Image:
    values = torch.randint(
        0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Image.fromarray(values.numpy())


@pytest.mark.parametrize("text", ["gelu", "quick_gelu", "gelu_tanh"])
@torch.no_grad()
def test_transformers_gives_the_vectors_of_the_source(tmp_path: Path, text: str) -> None:
    options = CLIP_OPTIONS | {"act_layer": "quick_gelu", "drop_path_rate": 0.1}
    source = checkpoint(tmp_path / "source", image={"options": options}, text={"activation": text})
    loaded = exported(source, tmp_path / "out")
    model, processor = (
        CLIPModel.from_pretrained(tmp_path / "out"),
        CLIPProcessor.from_pretrained(tmp_path / "out"),
    )
    inputs = processor(images=picture(16), text=SENTENCES, padding=True, truncation=True, return_tensors="pt")
    image = unit(model.get_image_features(inputs["pixel_values"]))
    texts = unit(model.get_text_features(inputs["input_ids"], attention_mask=inputs["attention_mask"]))
    own = loaded.model.encode_image(loaded.preprocess(picture(16)).unsqueeze(0))
    torch.testing.assert_close(image, own, atol=1e-5, rtol=0)
    own = loaded.model.encode_text(loaded.tokenizer(SENTENCES))  # type: ignore[misc]
    torch.testing.assert_close(texts, own, atol=1e-5, rtol=0)
    assert own.std() > 0.1
    assert model.logit_scale.item() == loaded.model.logit_scale.item()


def test_an_end_of_text_that_clip_misreads_gets_a_token_of_its_own(tmp_path: Path) -> None:
    """CLIPModel takes the largest id for the end where its configuration says 2."""
    loaded = exported(checkpoint(tmp_path / "source"), tmp_path / "out")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.eot_id == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert config["eos_token_id"] == config["vocab_size"] - 1 == loaded.tokenizer.vocab_size
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(SENTENCES, truncation=True)["input_ids"]
    for row, text in zip(ids, SENTENCES, strict=True):
        assert row == [*loaded.tokenizer.encode(text)[:-1], config["eos_token_id"]]


@pytest.mark.parametrize("family", ["clip", "siglip"])
@torch.no_grad()
def test_what_was_imported_is_exported_as_it_came(tmp_path: Path, family: str) -> None:
    make, kind = {"clip": (clip_folder, CLIPModel), "siglip": (siglip_folder, SiglipModel)}[family]
    source, model = make(tmp_path / family)
    import_model(source, tmp_path / "imported", NOTHING)
    loaded = exported(tmp_path / "imported", tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].reshape(after[name].shape), after[name]) for name in before)
    again = kind.from_pretrained(tmp_path / "out")
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(unit(again.get_image_features(image)), unit(model.get_image_features(image)))
    import_model(tmp_path / "out", tmp_path / "again", NOTHING)
    twice = vlm.load(tmp_path / "again")
    assert loaded.tokenizer is not None
    assert twice.tokenizer is not None
    assert [twice.tokenizer.encode(text) for text in TEXTS] == [
        loaded.tokenizer.encode(text) for text in TEXTS
    ]
    assert twice.preprocess == loaded.preprocess
    text = loaded.tokenizer(TEXTS)
    assert torch.equal(twice.model.encode_text(text), loaded.model.encode_text(text))


@torch.no_grad()
def test_a_siglip_that_learned_a_projection_of_texts_keeps_it(tmp_path: Path) -> None:
    source, _ = siglip_folder(tmp_path / "siglip")
    import_model(source, tmp_path / "imported", NOTHING)
    loaded = vlm.load(tmp_path / "imported")
    assert loaded.model.text_projection is not None
    loaded.model.text_projection.weight.add_(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))
    changed = exported(save_tiny(tmp_path / "changed", loaded=loaded), tmp_path / "out")
    model, processor = (
        SiglipModel.from_pretrained(tmp_path / "out"),
        SiglipProcessor.from_pretrained(tmp_path / "out"),
    )
    ids = processor(text=TEXTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    own = changed.model.encode_text(changed.tokenizer(TEXTS))  # type: ignore[misc]
    torch.testing.assert_close(unit(model.get_text_features(ids)), own, atol=1e-5, rtol=0)
    loaded.model.image_projection.weight.mul_(2.0)
    save_tiny(tmp_path / "projected", loaded=loaded)
    with pytest.raises(ConfigError, match="the projection of image vectors, which SiglipModel does not have"):
        exported(tmp_path / "projected", tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": RESNET},
            r"resnet10t is no vision transformer, .* format=open_clip, onnx, safetensors",
        ),
        (
            {"image": {"options": CLIP_OPTIONS | {"global_pool": "avg"}}},
            "pools with global_pool=avg",
        ),
        ({"image": {"options": CLIP_OPTIONS | {"reg_tokens": 2}}}, "reg_token"),
        (
            {"image": {"options": CLIP_OPTIONS | {"act_layer": "silu"}}},
            "activation silu",
        ),
        (
            {"image": {"options": CLIP_OPTIONS | {"pre_norm": False}}},
            r"8\)\), the other .*bias=False",
        ),
        (
            {"image_pooler": {"kind": "shared", "queries": 2, "heads": 1}},
            "model.image_pooler; format=onnx",
        ),
        (
            {"text": {"pooling": "class"}},
            r"model.text.pooling=class\); format=onnx, safetensors can",
        ),
        ({"text": {"kind": "bag_of_words"}}, "text tower of model.text.kind=bag_of_words"),
        ({"text": None}, r"the model has no text tower \(model.text=null\); format=onnx, safetensors can"),
        (
            {"preprocess": {"resize_mode": "longest"}},
            "resize_mode=longest.* format=open_clip, onnx",
        ),
    ],
)
def test_a_model_that_clip_cannot_hold_is_refused_with_its_part(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = checkpoint(tmp_path / "source", **changes)
    with pytest.raises(ConfigError, match=message):
        exported(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
