import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import save_tiny, tiny_loaded

from vlm.errors import CheckpointError
from vlm.inference import (
    latest_checkpoint,
    load,
    load_weights,
    read_config,
    read_description,
    read_weights,
    save_model,
    verify,
)
from vlm.inference.contradictions import require_carried


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    original, again = tiny_loaded(), load(save_tiny(tmp_path / "step_00000007"))
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    texts = ["a red square", "蓝色的正方形"]
    assert torch.equal(again.model.encode_image(images), original.model.encode_image(images))
    assert torch.equal(
        again.model.encode_text(again.tokenizer(texts)), original.model.encode_text(original.tokenizer(texts))
    )
    assert again.preprocess == original.preprocess
    assert not again.model.training


def test_weights_of_any_precision_are_stored_as_fp32(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    weights = {name: value.bfloat16() for name, value in loaded.model.state_dict().items()}
    save_model(
        tmp_path, weights=weights, spec=loaded.model.spec, preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer, step=1, config={},
    )  # fmt: skip
    assert {value.dtype for value in read_weights(tmp_path).values()} == {torch.float32}


def test_description_tells_step_model_and_versions(tmp_path: Path) -> None:
    description = read_description(save_tiny(tmp_path))
    assert description.step == 7
    assert description.model == tiny_loaded().model.spec
    assert description.versions["torch"] == torch.__version__
    assert read_config(tmp_path) == {"run": {"name": "tiny"}}


def test_a_run_stands_for_its_last_complete_checkpoint(tmp_path: Path) -> None:
    for step in (90, 1000):
        save_tiny(tmp_path / "checkpoints" / f"step_{step:08d}", step=step)
    (tmp_path / "checkpoints" / "step_00002000").mkdir()  # nothing in it yet
    save_tiny(tmp_path / "checkpoints" / ".step_00003000.tmp", step=3000)
    assert latest_checkpoint(tmp_path).name == "step_00001000"
    assert latest_checkpoint(tmp_path / "checkpoints" / "step_00000090").name == "step_00000090"


def test_a_folder_without_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*metrics\.csv"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="not a folder"):
        load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", b"{", "not the description"),
        ("model.json", b"[1]", "not the description"),
        ("model.json", b'{"format": 99}', "format 99, this version of vlm reads 2"),
        ("model.json", b'{"format": 2, "step": 1}', "not the description"),
        ("model.safetensors", b"\x80\x04torn", r"model\.safetensors"),
        ("model.safetensors", None, "incomplete"),
        ("tokenizer.json", b"{}", "has 2 bytes, not the"),
        ("tokenizer.json", None, "incomplete"),
    ],
)
def test_a_broken_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = save_tiny(tmp_path) / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_description_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.json"
    content = json.loads(path.read_text())
    content["model"]["image"]["nam"] = "x"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model\.image\.nam"):
        load(tmp_path)


def test_weights_that_do_not_fit_are_listed_and_none_is_copied() -> None:
    model = tiny_loaded().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    del weights["logit_scale"]
    weights["stranger"] = torch.zeros(1)
    weights["image_projection.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, where="here")
    message = str(caught.value)
    assert [line.split() for line in message.splitlines()] == [
        ["the", "weights", "of", "here", "do", "not", "fit", "the", "model:"],
        ["parameter", "in", "the", "model", "in", "the", "weights"],
        ["image_projection.weight", "(8,", "16)", "(3,", "3)"],
        ["logit_scale", "(1,)", "missing"],
        ["stranger", "not", "in", "the", "model", "(1,)"],
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_altered_without_changing_its_size_is_noticed(tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was altered"):
        load(tmp_path)


def test_an_altered_description_is_noticed(tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.json"
    path.write_text(path.read_text().replace('"step": 7', '"step": 8'))
    with pytest.raises(CheckpointError, match=r"model\.json was altered"):
        read_description(tmp_path)


def test_a_description_that_contradicts_the_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    asked = loaded.model.spec.to_mapping()
    asked["text"] = {**asked["text"], "activation": "quick_gelu"}
    save_model(
        tmp_path, weights=loaded.model.state_dict(), spec=loaded.model.spec, preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer, step=1, config={"model": asked},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"contradicts config\.json") as caught:
        load(tmp_path)
    assert [line.split() for line in str(caught.value).splitlines()[1:]] == [
        ["key", "model.json", "config.json"],
        ["model.text.activation", "gelu", "quick_gelu"],
    ]


def test_what_the_configuration_left_open_is_no_contradiction(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    asked = loaded.model.spec.to_mapping()
    asked["text"] = {**asked["text"], "vocab_size": None, "eot_id": 7}
    asked["image"] = {**asked["image"], "pretrained": True, "options": None}
    save_model(
        tmp_path, weights=loaded.model.state_dict(), spec=loaded.model.spec, preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer, step=1, config={"model": asked, "data": {"preprocess": {"new": 1}}},
    )  # fmt: skip
    assert read_description(tmp_path).model == loaded.model.spec


def test_weights_that_carry_no_description_are_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.safetensors"
    save_file(read_weights(tmp_path), path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was replaced: it does not carry"):
        load(tmp_path)


def test_every_file_is_verified(tmp_path: Path) -> None:
    verify(save_tiny(tmp_path))
    (tmp_path / "config.json").write_text('{"run": {"name": "tina"}}')
    with pytest.raises(CheckpointError, match=r"config\.json has .* bytes"):
        verify(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        verify(tmp_path)


def test_weights_from_before_a_model_could_have_decoders_are_believed(tmp_path: Path) -> None:
    spec = tiny_loaded().model.spec
    before = spec.to_mapping()
    for name in ("image_pooler", "text_decoder", "image_decoder"):
        del before[name]
    del before["text"]["pooling"]
    weights = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(1)}, weights, metadata={"model": json.dumps(before)})
    require_carried(weights, spec, where=tmp_path / "model.json")
    before["text"]["heads"] = 4
    save_file({"x": torch.ones(1)}, weights, metadata={"model": json.dumps(before)})
    with pytest.raises(CheckpointError, match=r"text\.heads"):
        require_carried(weights, spec, where=tmp_path / "model.json")
