"""Checkpoints between two: their numbers, what they say of themselves, and what has nothing in between."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny import save_tiny, tiny_loaded
from torch import Tensor

from vlm.data.tokenizers import trained_bpe
from vlm.errors import CheckpointError, ConfigError
from vlm.inference import (
    Line,
    Loaded,
    interpolate,
    load,
    read_config,
    read_description,
    read_weights,
    save_model,
)
from vlm.models import ModelSpec


def moved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: value + 0.1 * torch.randn(value.shape) for name, value in weights.items()}


def save(
    folder: Path, loaded: Loaded, weights: dict[str, Tensor] | None = None, spec: ModelSpec | None = None
) -> Path:
    save_model(
        folder,
        weights=weights or loaded.model.state_dict(),
        spec=spec or loaded.model.spec,
        preprocess=loaded.preprocess,
        tokenizer=loaded.tokenizer,
        step=9,
        config={"suite": {"evaluators": {}}},
        data={"train": "of the end"},
    )
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "start")


@pytest.fixture
def end(tmp_path: Path) -> Path:
    loaded = tiny_loaded()
    return save(tmp_path / "end", loaded, moved(loaded.model.state_dict()))


@pytest.fixture
def line(start: Path, end: Path, tmp_path: Path) -> Line:
    return Line.between(start, end, tmp_path / "out")


def test_each_number_is_that_of_a_loop_in_float64(line: Line) -> None:
    start, end = read_weights(line.start), read_weights(line.end)
    assert line.write(0.3)
    between = read_weights(line.place(0.3))
    assert between.keys() == start.keys()
    for name, value in between.items():
        pairs = zip(start[name].flatten().tolist(), end[name].flatten().tolist(), strict=True)
        expected = torch.tensor([0.7 * one + 0.3 * other for one, other in pairs], dtype=torch.float32)
        assert torch.equal(value.flatten(), expected), name


def test_the_temperature_is_interpolated_as_a_logarithm(line: Line) -> None:
    line.write(0.5)
    scales = [load(path).model.logit_scale.exp().item() for path in (line.start, line.place(0.5), line.end)]
    assert scales[1] == pytest.approx(math.sqrt(scales[0] * scales[2]))
    assert scales[0] != scales[2]


def test_the_ends_are_start_and_end_to_the_last_bit(line: Line) -> None:
    for weight, path in ((0.0, line.start), (1.0, line.end)):
        line.write(weight)
        name = "model.safetensors"
        assert (line.place(weight) / name).read_bytes() == (path / name).read_bytes()


def test_an_end_does_not_see_what_is_not_finite_in_the_other() -> None:
    one, other = {"a": torch.tensor([-0.0, 1.0])}, {"a": torch.tensor([float("inf"), float("nan")])}
    for weight, expected in ((0.0, one), (1.0, other)):
        found = interpolate(one, other, weight)["a"]
        assert found.numpy().tobytes() == expected["a"].numpy().tobytes()


def test_a_checkpoint_says_what_it_was_made_of(line: Line) -> None:
    line.write(0.25)
    place = line.place(0.25)
    assert place.name == "weight_0.25"
    assert line.place(1.0).name == "weight_1"
    origin = read_config(place)["interpolate"]
    assert (origin["weight"], origin["start"], origin["end"]) == (0.25, str(line.start), str(line.end))
    assert read_config(place)["suite"] == {"evaluators": {}}
    description = read_description(place)
    assert (description.step, description.data, description.seed) == (9, {"train": "of the end"}, None)
    loaded = load(place)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("a red square").tolist() == tiny_loaded().tokenizer("a red square").tolist()


def test_what_is_written_is_not_written_again(line: Line, tmp_path: Path) -> None:
    line.write(0.5)
    before = (line.place(0.5) / "model.json").stat().st_mtime_ns
    shutil.copytree(line.end, tmp_path / "end_elsewhere")
    assert not line.write(0.5)
    assert not Line.between(line.start, tmp_path / "end_elsewhere", line.folder).write(0.5)
    assert (line.place(0.5) / "model.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="lies between other checkpoints than start="):
        Line.between(line.end, line.start, line.folder).write(0.5)
    save_tiny(line.place(0.75))
    with pytest.raises(ConfigError, match="lies between other checkpoints"):
        line.write(0.75)


def test_half_a_checkpoint_is_none(line: Line) -> None:
    name = "model.safetensors"
    line.write(0.5)
    with (line.place(0.5) / name).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=f"{name} has 100 bytes"):
        line.write(0.5)
    (line.place(0.25)).mkdir()
    with pytest.raises(CheckpointError, match=r"weight_0\.25 is no checkpoint; delete it"):
        line.write(0.25)


def test_different_models_have_nothing_between_them(start: Path, tmp_path: Path) -> None:
    loaded = tiny_loaded()
    spec = loaded.model.spec
    others = {
        r"model\.image\.mean +\(?\[0\.5, 0\.4, 0\.3\]": dataclasses.replace(
            spec, image=dataclasses.replace(spec.image, mean=(0.1, 0.2, 0.3))
        ),
        r"model\.text\.heads +2 +1": dataclasses.replace(spec, text=dataclasses.replace(spec.text, heads=1)),
    }
    for number, (message, other) in enumerate(others.items()):
        folder = save(tmp_path / f"other_{number}", loaded, spec=other)
        with pytest.raises(ConfigError, match=f"start=.*are different models(.|\n)*{message}"):
            Line.between(start, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_preprocessing_or_tokenizer_is_another_model(start: Path, tmp_path: Path) -> None:
    loaded = tiny_loaded()
    squashed = loaded._replace(preprocess=dataclasses.replace(loaded.preprocess, resize_mode="shortest"))
    with pytest.raises(ConfigError, match=r"data\.preprocess\.resize_mode +squash +shortest"):
        Line.between(start, save(tmp_path / "resized", squashed), tmp_path / "out")
    assert loaded.tokenizer is not None
    size = loaded.tokenizer.vocab_size
    other = trained_bpe(["0123 4567 ", "789 789 "], vocab_size=size, context_length=16)
    path = save(tmp_path / "worded", loaded)
    assert other.eot_id == loaded.tokenizer.eot_id
    worded = save(path, loaded._replace(tokenizer=other))
    with pytest.raises(ConfigError, match=r"tokenizer\.json +its own +another"):
        Line.between(start, worded, tmp_path / "out")


def test_how_the_temperature_began_does_not_matter(start: Path, tmp_path: Path) -> None:
    loaded = tiny_loaded()
    spec = dataclasses.replace(loaded.model.spec, init_logit_scale=20.0)
    folder = save(tmp_path / "warmer", loaded, spec=spec)
    assert Line.between(start, folder, tmp_path / "out").write(0.5)


def test_altered_weights_are_refused(start: Path, end: Path, tmp_path: Path) -> None:
    (end / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="was altered"):
        Line.between(start, end, tmp_path / "out")
