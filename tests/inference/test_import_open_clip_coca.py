"""Against what open_clip computed: `open_clip_coca_tiny/make.py` made it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import NOTHING, write_tokenizer
from safetensors.torch import load_file
from torch import Tensor

from vlm.errors import CheckpointError, ConfigError
from vlm.inference import Loaded, load
from vlm.inference.foreign import import_model

TINY = Path(__file__).parent / "open_clip_coca_tiny"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
VARIANTS = ("pooled", "same_width", "patches")
EOT = 9


def folder_of(variant: str, tmp_path: Path) -> Path:
    """A folder as open_clip writes it, with a tokenizer."""
    folder = tmp_path / variant
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(TINY / variant / name, folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder_of("pooled", tmp_path)


def change(folder: Path, part: str, **values: Any) -> None:
    """Set keys of a part of an open_clip configuration."""
    content = json.loads((folder / CONFIG).read_text())
    content["model_cfg"][part].update(values)
    (folder / CONFIG).write_text(json.dumps(content))


def imported(source: Path, **given: Any) -> Loaded:
    out = source.with_name("imported")
    shutil.rmtree(out, ignore_errors=True)
    import_model(source, out, dataclasses.replace(NOTHING, **given))
    return load(out)


def expected_of(variant: str) -> dict[str, Tensor]:
    return load_file(TINY / variant / "expected.safetensors")


@torch.no_grad()
def differences(loaded: Loaded, expected: dict[str, Tensor], *, text: str = "text_features") -> list[float]:
    """The largest in the vectors of images, of texts, and in the logits after real tokens."""
    image, states = loaded.model.image_states(expected["image"]), loaded.model.text_states(expected["text"])
    logits = loaded.model.caption_logits(image, states)
    pairs = (
        (image.vector, expected["image_features"]),
        (states.vector, expected[text]),
        (logits[states.mask], expected["logits"][states.mask]),
    )
    return [(own - other).abs().max().item() for own, other in pairs]


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_logits_equal_those_of_open_clip(tmp_path: Path, variant: str) -> None:
    loaded, expected = imported(folder_of(variant, tmp_path)), expected_of(variant)
    assert expected["logits"].std() > 0.5
    assert max(differences(loaded, expected)) < 2e-6
    assert (loaded.model.spec.image_pooler is None) == (variant == "patches")


def test_texts_that_are_cut_to_the_longest_of_a_batch_give_the_same(source: Path) -> None:
    loaded, expected = imported(source), expected_of("pooled")
    rows = slice(0, 3)
    short = {name: value[rows] for name, value in expected.items()}
    cut = {"text": short["text"][:, :8], "logits": short["logits"][:, :8]}
    assert (short["text"][:, 8:] == 0).all()
    assert max(differences(loaded, short | cut)) < 2e-6


def test_the_class_token_sees_what_the_json_says(source: Path) -> None:
    expected = expected_of("pooled")
    assert imported(source).model.spec.text_tower.pooling == "class_open_clip"  # type: ignore[union-attr]
    change(source, "text_cfg", correct_cls_mask=True)
    loaded = imported(source)
    assert loaded.model.spec.text_tower.pooling == "class"  # type: ignore[union-attr]
    assert max(differences(loaded, expected, text="text_correct")) < 2e-6
    assert differences(loaded, expected)[1] > 1e-3


def test_bare_weights_need_the_json_of_the_model(source: Path) -> None:
    path = source / "epoch_32.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in load_file(source / WEIGHTS).items()}}, path)
    with pytest.raises(ConfigError, match=r"no multimodal_cfg says how many heads .* set model_config=FILE"):
        imported(path)
    model = json.loads((source / CONFIG).read_text())["model_cfg"]
    (source / "coca.json").write_text(json.dumps(model))
    loaded = imported(path, model_config=str(source / "coca.json"))
    assert max(differences(loaded, expected_of("pooled"))) < 2e-6
    assert loaded.model.spec.image.std == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_cfg", {"attentional_pool": "parallel"}, "attentional_pool='parallel' has no counterpart"),
        ("vision_cfg", {"attentional_pool": "cascade"}, "attentional_pool='cascade' has no counterpart"),
        ("vision_cfg", {"attentional_pool": False}, r"attentional_pool is False .* True in its weights"),
        ("vision_cfg", {"attn_pooler_queries": 4}, r"attn_pooler_queries is 4 .* 5 in its weights"),
        ("vision_cfg", {"attn_pooler_heads": 3}, r"image_pooler\.heads=3 does not divide .*embed_dim=16"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type='avg'"),
        ("text_cfg", {"embed_cls": False}, "text_cfg.embed_cls=False has no counterpart .* with true"),
        ("text_cfg", {"pad_id": 1}, "text_cfg.pad_id=1 has no counterpart .* with 0"),
        (
            "text_cfg",
            {"context_length": 11},
            "multimodal_cfg.context_length=12 has no counterpart .* with 11",
        ),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name='roberta-base'"),
        ("multimodal_cfg", {"context_length": 77}, "multimodal_cfg.context_length=77 .* with 12"),
        ("multimodal_cfg", {"layers": 3}, r"multimodal_cfg\.layers is 3 .* 2 in its weights"),
        ("multimodal_cfg", {"width": 24}, r"multimodal_cfg\.width is 24 .* 16 in its weights"),
        ("multimodal_cfg", {"heads": 3}, r"text_decoder\.heads=3 does not divide"),
        ("multimodal_cfg", {"ls_init_value": 1e-5}, "multimodal_cfg.ls_init_value=1e-05 has no counterpart"),
    ],
)
def test_what_the_model_cannot_be_is_refused(
    source: Path, part: str, values: dict[str, Any], message: str
) -> None:
    change(source, part, **values)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        imported(source)
    assert not source.with_name("imported").exists()


def test_the_json_of_a_coca_is_not_that_of_a_clip(source: Path) -> None:
    clip = TINY.with_name("open_clip_tiny")
    with pytest.raises(CheckpointError, match="described as CoCa by multimodal_cfg, but has no text_decoder"):
        imported(clip / WEIGHTS, model_config=str(source / CONFIG))
    with pytest.raises(ConfigError, match="is a CoCa, and no multimodal_cfg says"):
        imported(source, model_config=str(clip / CONFIG))
