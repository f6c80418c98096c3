"""Against features that open_clip computed: `open_clip_tiny/make.py` made them."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import NOTHING, write_tokenizer
from safetensors.torch import load_file
from torch import Tensor

from vlm.errors import CheckpointError, ConfigError, VlmError
from vlm.inference import Loaded, load
from vlm.inference.foreign import import_model

TINY = Path(__file__).parent / "open_clip_tiny"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
ACTIVATIONS = ("gelu", "quick_gelu")
BARE = {
    "activation": "gelu",
    "head_width": 8,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "resize_mode": "squash",
    "interpolation": "bilinear",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as open_clip writes it, with a tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(TINY / name, folder)
    write_tokenizer(folder)
    return folder


def change(path: Path, part: str, **values: Any) -> None:
    """Set keys of a part of an open_clip configuration; "" is the model itself."""
    content = json.loads(path.read_text())
    (content["model_cfg"][part] if part else content["model_cfg"]).update(values)
    path.write_text(json.dumps(content))


def imported(source: Path, **given: Any) -> Loaded:
    out = source.with_name("imported")
    shutil.rmtree(out, ignore_errors=True)
    import_model(source, out, dataclasses.replace(NOTHING, **given))
    return load(out)


@torch.no_grad()
def differences(loaded: Loaded, activation: str) -> tuple[float, float]:
    expected = load_file(TINY / "expected.safetensors")
    image = loaded.model.encode_image(expected["image"]) - expected[f"image_{activation}"]
    text = loaded.model.encode_text(expected["text"]) - expected[f"text_{activation}"]
    return image.abs().max().item(), text.abs().max().item()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_features_equal_those_of_open_clip(source: Path, activation: str) -> None:
    change(source / CONFIG, "", quick_gelu=activation == "quick_gelu")
    loaded = imported(source)
    assert max(differences(loaded, activation)) < 1e-6
    other = ACTIVATIONS[1 - ACTIVATIONS.index(activation)]
    assert min(differences(loaded, other)) > 1e-3
    with pytest.raises(ConfigError, match=f"activation={other}, but .* activation is {activation}"):
        imported(source, activation=other)


def test_preprocessing_and_scale_come_from_the_folder(source: Path) -> None:
    loaded = imported(source)
    assert loaded.model.spec.image.mean == (0.48145466, 0.4578275, 0.40821073)
    assert loaded.preprocess.image_size == loaded.model.spec.image.image_size == 16
    assert (loaded.preprocess.resize_mode, loaded.preprocess.interpolation) == ("shortest", "bicubic")
    assert loaded.model.logit_scale.item() == pytest.approx(2.0)


def test_a_padded_picture_keeps_the_colour_of_its_border(source: Path) -> None:
    content = json.loads((source / CONFIG).read_text())
    content["preprocess_cfg"] |= {"resize_mode": "longest"}
    (source / CONFIG).write_text(json.dumps(content))
    assert imported(source).preprocess.background == (0, 0, 0)  # open_clip's fill_color


def weights_as(kind: str, folder: Path, weights: dict[str, Tensor]) -> Path:
    """The weights as the files that people have of them."""
    path = folder / "epoch_32.pt"
    image = ("visual", "logit_scale")
    contents = {
        "state dict": weights,
        "trainer": {"epoch": 32, "name": "run", "state_dict": {f"module.{k}": v for k, v in weights.items()}},
        "compiled": {"state_dict": {f"module._orig_mod.{k}": v for k, v in weights.items()}},
        "custom text": {k if k.startswith(image) else f"text.{k}": v for k, v in weights.items()},
        "first clip": {**weights, "input_resolution": torch.tensor(16), "context_length": torch.tensor(12)},
        "half": {name: value.half() for name, value in weights.items()},
    }
    torch.save(contents[kind], path)
    return path


@pytest.mark.parametrize("kind", ["state dict", "trainer", "compiled", "custom text", "first clip", "half"])
def test_bare_weights_need_what_shapes_do_not_tell(source: Path, kind: str) -> None:
    path = weights_as(kind, source, load_file(source / WEIGHTS))
    with pytest.raises(ConfigError, match=r"does not say activation, head_width, mean, .* model_config="):
        imported(path)
    loaded = imported(path, **BARE)
    assert max(differences(loaded, "gelu")) < (1e-2 if kind == "half" else 1e-6)
    assert loaded.model.spec.image.mean == (0.5, 0.5, 0.5)
    assert loaded.preprocess.resize_mode == "squash"


def test_the_json_of_a_model_says_it_all(source: Path) -> None:
    path = weights_as("state dict", source, load_file(source / WEIGHTS))
    model = json.loads((source / CONFIG).read_text())["model_cfg"] | {"quick_gelu": True}
    (source / "ViT-tiny.json").write_text(json.dumps(model))
    loaded = imported(path, model_config=str(source / "ViT-tiny.json"))
    assert max(differences(loaded, "quick_gelu")) < 1e-6
    assert loaded.model.spec.image.std == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("", {"embed_dim": 21}, "embed_dim is 21 in the description .* 20 in its weights"),
        ("vision_cfg", {"layers": 3}, r"vision_cfg\.layers is 3 .* 2 in its weights"),
        ("vision_cfg", {"image_size": 24}, r"vision_cfg\.image_size is 24 .* 16 in its weights"),
        ("text_cfg", {"context_length": 77}, r"text_cfg\.context_length is 77 .* 12"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, r"timm_model_name='convnext_base' has no"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, r"vision_cfg\.layers is \[3, 4, 6, 3\]"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool=True has no counterpart"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type='avg'"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre=True"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask=True"),
        ("text_cfg", {"pool_type": "last"}, "pool_type='last'"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 4}, "ends a text with id 9, .* at id 4"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name='roberta-base'"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-6}}, "norm_kwargs="),
    ],
)
def test_what_the_towers_cannot_be_is_refused(
    source: Path, part: str, values: dict[str, Any], message: str
) -> None:
    change(source / CONFIG, part, **values)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        imported(source)
    assert not source.with_name("imported").exists()


def test_weights_that_are_missing_or_unknown_are_listed(source: Path) -> None:
    weights = load_file(source / WEIGHTS)
    weights["visual.stranger"] = weights.pop("visual.ln_post.weight")
    del weights["transformer.resblocks.1.mlp.c_fc.bias"]
    path = weights_as("state dict", source, weights)
    with pytest.raises(CheckpointError) as caught:
        imported(path, **BARE)
    rows = [line.split("  ") for line in str(caught.value).splitlines()[2:]]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["image.trunk.norm.weight", "(24,)", "missing"],
        ["text.blocks.1.mlp.c_fc.bias", "(96,)", "missing"],
        ["visual.stranger", "not in the model", "(24,)"],
    ]


class Runs:
    """A pickle that would run something."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_not_opened(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    path = source / "epoch_32.pt"
    torch.save({"state_dict": load_file(source / WEIGHTS), "args": Runs()}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors, numbers and texts"):
        imported(path, **BARE)
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError):
        imported(path, **BARE)
    assert not (source / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text", b"\x80\x02}.", b"\x80\x02]q\x00."])
@pytest.mark.parametrize("name", ["epoch_32.pt", "weights.safetensors"])
def test_a_damaged_file_is_one_message(source: Path, name: str, content: bytes) -> None:
    (source / name).write_bytes(content)
    with pytest.raises(VlmError, match=name):
        imported(source / name, **BARE)


def test_a_truncated_file_is_one_message(source: Path) -> None:
    path = weights_as("trainer", source, load_file(source / WEIGHTS))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="damaged"):
        imported(path, **BARE)


def test_weights_of_other_models_say_what_can_be_imported(source: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, source / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"has no visual\.conv1\.weight.* \(it has conv1\.weight, fc"):
        imported(source / "resnet.pt", **BARE)


def test_a_source_without_tokenizer_asks_for_one(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer; set tokenizer_path=FILE: bpe_simple_vocab"):
        imported(source)
    elsewhere = write_tokenizer(tmp_path / "elsewhere")
    assert imported(source, tokenizer_path=str(elsewhere)).tokenizer.eot_id == 9
    assert imported(source, tokenizer_path=str(elsewhere.parent)).tokenizer.context_length == 12
