import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import (
    CONTEXT,
    EOT,
    NOTHING,
    TEXTS,
    clip_folder,
    pixels,
    randomised,
    siglip_folder,
    unit,
    write_processor,
    write_tokenizer,
)
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

import vlm
from vlm.data.tokenizers import Tokenizer
from vlm.errors import CheckpointError, ConfigError, OutputError
from vlm.inference import Loaded, load
from vlm.inference.foreign import import_model


def imported(source: Path, **given: Any) -> Loaded:
    out = source.parent / f"imported_{source.name}"
    import_model(source, out, dataclasses.replace(NOTHING, **given))
    return load(out)


def largest_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def clip_differences(loaded: Loaded, model: CLIPModel, texts: list[str]) -> tuple[float, float]:
    image = pixels(loaded.model.spec.image.image_size)
    text = loaded.tokenizer(texts)
    return (
        largest_difference(loaded.model.encode_image(image), unit(model.get_image_features(image))),
        largest_difference(
            loaded.model.encode_text(text), unit(model.get_text_features(text, attention_mask=None))
        ),
    )


@pytest.mark.parametrize("image", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("text", ["gelu", "quick_gelu"])
def test_features_equal_those_of_clip_with_either_activation(tmp_path: Path, image: str, text: str) -> None:
    source, model = clip_folder(tmp_path / "clip", image={"hidden_act": image}, text={"hidden_act": text})
    loaded = imported(source)
    assert max(clip_differences(loaded, model, TEXTS)) < 1e-6
    assert loaded.model.logit_scale.item() == pytest.approx(2.0)


def test_the_other_activation_would_change_features_and_is_refused(tmp_path: Path) -> None:
    source, model = clip_folder(
        tmp_path / "clip", image={"hidden_act": "quick_gelu"}, text={"hidden_act": "quick_gelu"}
    )
    with pytest.raises(ConfigError, match=r"activation=gelu, but .* of the image tower is quick_gelu"):
        imported(source, activation="gelu")
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["hidden_act"] = config["text_config"]["hidden_act"] = "gelu"
    (source / "config.json").write_text(json.dumps(config))
    assert min(clip_differences(imported(source), model, TEXTS)) > 1e-3


def test_an_altered_activation_of_the_checkpoint_is_refused_with_both_values(tmp_path: Path) -> None:
    source, _ = clip_folder(tmp_path / "clip", text={"hidden_act": "quick_gelu"})
    imported(source)
    path = tmp_path / "imported_clip" / "model.json"
    path.write_text(path.read_text().replace('"activation": "quick_gelu"', '"activation": "gelu"'))
    with pytest.raises(CheckpointError, match=r"model\.text\.activation +gelu +quick_gelu"):
        vlm.load(tmp_path / "imported_clip")


def test_configurations_older_than_the_end_of_text_pool_at_the_largest_id(tmp_path: Path) -> None:
    source, model = clip_folder(tmp_path / "clip", text={"eos_token_id": 2})
    assert max(clip_differences(imported(source), model, TEXTS)) < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_equal_those_of_a_whole_vit_b_32(tmp_path: Path, activation: str) -> None:
    """The sizes of CLIPConfig are those of ViT-B-32; texts of all lengths, random tokens."""
    config = CLIPConfig(text_config={"hidden_act": activation}, vision_config={"hidden_act": activation})
    model = randomised(CLIPModel(config), noise=0.02)
    model.save_pretrained(tmp_path / "clip")
    write_processor(tmp_path / "clip", squash=False, side=224)
    large = write_tokenizer(tmp_path / "tokenizer", size=49408)
    loaded = imported(tmp_path / "clip", tokenizer_path=str(large))
    assert loaded.model.spec.image.name == "vit_base_patch32_clip_224"
    texts = [" ".join(["red", "square"] * length) for length in (1, 5, 20, 37)]
    found = clip_differences(loaded, model, texts)
    print(f"largest differences of image and text features: {found}")
    assert max(found) < 1e-5


@pytest.mark.parametrize(("pad", "padding"), [("<pad>", 0), ("<end>", EOT)])
@torch.no_grad()
def test_features_equal_those_of_siglip(tmp_path: Path, pad: str, padding: int) -> None:
    source, model = siglip_folder(tmp_path / "siglip")
    (source / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    loaded = imported(source)
    image, text = pixels(32), loaded.tokenizer(TEXTS)
    filled = torch.full((len(TEXTS), CONTEXT), padding)
    for target, line in zip(filled, TEXTS, strict=True):
        ids = loaded.tokenizer.encode(line)
        target[: len(ids)] = torch.tensor(ids)
    assert largest_difference(loaded.model.encode_image(image), unit(model.get_image_features(image))) < 1e-6
    assert largest_difference(loaded.model.encode_text(text), unit(model.get_text_features(filled))) < 1e-6
    assert not torch.allclose(loaded.model.encode_text(text), unit(model.get_text_features(text)), atol=1e-3)
    assert loaded.model.logit_bias.item() == model.logit_bias.item()


def test_siglip_reads_the_padding_of_its_tokenizer(tmp_path: Path) -> None:
    source, _ = siglip_folder(tmp_path / "siglip")  # whose configuration says 1
    text = imported(source).model.spec.text
    assert text.options["pad_token_id"] == 0  # type: ignore[union-attr]


def test_preprocessing_comes_from_the_folder(tmp_path: Path) -> None:
    clip, siglip = (
        imported(clip_folder(tmp_path / "clip")[0]),
        imported(siglip_folder(tmp_path / "siglip")[0]),
    )
    for loaded in (clip, siglip):
        assert loaded.model.spec.image.mean == (0.5, 0.4, 0.3)
        assert loaded.model.spec.image.std == (0.2, 0.25, 0.3)
        assert loaded.preprocess.image_size == 32
    assert (clip.preprocess.resize_mode, clip.preprocess.interpolation) == ("shortest", "bicubic")
    assert (siglip.preprocess.resize_mode, siglip.preprocess.interpolation) == ("squash", "bilinear")


def test_weights_in_several_files_are_one_model(tmp_path: Path) -> None:
    source, model = clip_folder(tmp_path / "clip")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="50KB")
    assert (source / "model.safetensors.index.json").is_file()
    assert max(clip_differences(imported(source), model, TEXTS)) < 1e-6


def test_what_the_folder_does_not_say_is_asked_for_at_once(tmp_path: Path) -> None:
    source, model = clip_folder(tmp_path / "clip")
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="does not say mean, std, resize_mode, interpolation; set them by"):
        imported(source)
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
    assert max(clip_differences(imported(source, **given), model, TEXTS)) < 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activation": "gelu"}, "activation=gelu, but .*quick_gelu"),
        ({"head_width": 64}, "head_width=64, but .* head_width of the image tower is 16"),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean=\[0\.5, 0\.5, 0\.5\], but .* mean is \[0\.5, 0\.4, 0\.3\]"),
        ({"resize_mode": "squash"}, "resize_mode=squash, but .* resize_mode is shortest"),
    ],
)
def test_a_key_that_contradicts_the_folder_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    source, _ = clip_folder(tmp_path / "clip")
    with pytest.raises(ConfigError, match=message):
        imported(source, **given)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"shortest_edge": 40}}, "size is .*40"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_center_crop": False}, "size is"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
    ],
)
def test_preprocessing_that_cannot_be_repeated_is_refused(
    tmp_path: Path, processor: dict[str, Any], message: str
) -> None:
    source, _ = clip_folder(tmp_path / "clip")
    write_processor(source, processor, squash=False, side=32)
    with pytest.raises(CheckpointError, match=message):
        imported(source)


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        ("text_config", {"hidden_act": "relu"}, "hidden_act='relu' in its text tower"),
        ("vision_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
        ("text_config", {"eos_token_id": 5}, f"ends a text with id {EOT}, .* at id 5"),
        ("text_config", {"vocab_size": 4}, "tokenizer has ids up to 9, .* vocabulary of 4"),
        ("text_config", {"num_hidden_layers": 3}, r"text\.blocks\.2\.\S+ +\(\d+.*\) +missing"),
        ("vision_config", {"hidden_size": 96}, r"image\.trunk\.cls_token +\(1, 1, 96\) +\(1, 1, 48\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_message(
    tmp_path: Path, tower: str, changes: dict[str, Any], message: str
) -> None:
    source, _ = clip_folder(tmp_path / "clip")
    config = json.loads((source / "config.json").read_text())
    config[tower] |= changes
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        imported(source)
    assert not (tmp_path / "imported_clip").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "clip", "vision_config": 3}'),
        ("model.safetensors", "torn"),
        ("tokenizer.json", "{}"),
        ("preprocessor_config.json", '{"image_mean": 3, "size": []}'),
    ],
)
def test_a_damaged_file_is_one_message(tmp_path: Path, name: str, content: str) -> None:
    source, _ = clip_folder(tmp_path / "clip")
    (source / name).write_text(content)
    with pytest.raises((ConfigError, CheckpointError)):
        imported(source)
    assert not (tmp_path / "imported_clip").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"model_type": "blip"}'}, "model_type clip or siglip .*'blip'"),
        (
            {"config.json": '{"architecture": "resnet18"}'},
            r"of timm; .* model\.image\.pretrained=",
        ),
        ({"weights.bin": ""}, "no open_clip_config.json"),
        ({"model.json": "{}"}, "checkpoint of this project already"),
    ],
)
def test_a_folder_of_something_else_says_what_can_be_imported(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    (tmp_path / "source").mkdir()
    for name, content in files.items():
        (tmp_path / "source" / name).write_text(content)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        imported(tmp_path / "source")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = clip_folder(tmp_path / "clip")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No space left"):
        imported(source)
    assert sorted(tmp_path.iterdir()) == before


def test_of_a_folder_of_both_kinds_the_one_with_weights_is_read(tmp_path: Path) -> None:
    source, model = clip_folder(tmp_path / "clip")
    (source / "open_clip_config.json").write_text("{}")
    assert max(clip_differences(imported(source), model, TEXTS)) < 1e-6


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    source, _ = clip_folder(tmp_path / "clip")
    with pytest.raises(ConfigError, match="is not empty"):
        import_model(source, source, NOTHING)
