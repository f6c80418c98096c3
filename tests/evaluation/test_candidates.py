"""Models of other projects among the checkpoints of a sweep."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign_models import clip_folder, write_tokenizer
from safetensors.torch import load_file
from tiny import save_tiny

from vlm.errors import ConfigError
from vlm.evaluation.sweep import Candidate, OpenClip, find_candidates
from vlm.inference import load

OPEN_CLIP = Path(__file__).parents[1] / "inference" / "open_clip_tiny"


def found(
    folder: Path, patterns: str | list[str], *, weights: str = "model", **known: str
) -> list[Candidate]:
    facts = {"model_configs": None, "tokenizer_path": None} | known
    return find_candidates(
        patterns, weights=weights, open_clip=OpenClip(**facts), imported=folder / "imported"
    ).found


def test_a_folder_of_transformers_is_imported_once(tmp_path: Path) -> None:
    folder, _ = clip_folder(tmp_path / "clip-tiny")
    (candidate,) = found(tmp_path, str(folder))
    assert (candidate.name, candidate.step) == ("clip-tiny", 0)
    assert load(candidate.path).tokenizer is not None
    before = {path: path.stat().st_mtime_ns for path in candidate.path.iterdir()}
    assert found(tmp_path, str(tmp_path / "clip-*")) == [candidate]
    assert {path: path.stat().st_mtime_ns for path in candidate.path.iterdir()} == before


def test_other_weights_under_the_same_name_are_another_candidate(tmp_path: Path) -> None:
    folder, _ = clip_folder(tmp_path / "clip-tiny")
    (first,) = found(tmp_path, str(folder))
    shutil.rmtree(folder)
    torch.manual_seed(5)
    clip_folder(folder)
    (second,) = found(tmp_path, str(folder))
    assert second.name == first.name
    assert second.made_by != first.made_by


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """A state dict of open_clip, the json of its model, and a tokenizer."""
    (tmp_path / "configs").mkdir()
    config = json.loads((OPEN_CLIP / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "configs" / "ViT-tiny.json").write_text(json.dumps(config))
    torch.save(load_file(OPEN_CLIP / "open_clip_model.safetensors"), tmp_path / "epoch_32.pt")
    tokenizer = write_tokenizer(tmp_path / "words")
    return {"model_configs": str(tmp_path / "configs"), "tokenizer_path": str(tokenizer)}


def test_a_state_dict_is_named_with_its_model(tmp_path: Path, bare: dict[str, str]) -> None:
    (candidate,) = found(tmp_path, f"ViT-tiny:{tmp_path}/epoch_*.pt", **bare)
    assert candidate.name == "epoch_32"
    expected = load_file(OPEN_CLIP / "expected.safetensors")
    features = load(candidate.path).model.encode_image(expected["image"])
    torch.testing.assert_close(features, expected["image_gelu"], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("changed", ["configs/ViT-tiny.json", "words/tokenizer.json"])
def test_a_changed_config_or_tokenizer_is_imported_anew(
    tmp_path: Path, bare: dict[str, str], changed: str
) -> None:
    (first,) = found(tmp_path, f"ViT-tiny:{tmp_path}/epoch_32.pt", **bare)
    assert found(tmp_path, f"ViT-tiny:{tmp_path}/epoch_32.pt", **bare) == [first]
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n")
    (second,) = found(tmp_path, f"ViT-tiny:{tmp_path}/epoch_32.pt", **bare)
    assert (second.name, second.path != first.path) == (first.name, True)


def test_checkpoints_of_one_name_are_named_together(tmp_path: Path, bare: dict[str, str]) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "epoch_32.pt", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"checkpoints: 2 are called 'epoch_32' .*; rename"):
        found(
            tmp_path,
            [f"ViT-tiny:{tmp_path}/epoch_32.pt", f"ViT-tiny:{tmp_path}/other/epoch_32.pt"],
            **bare,
        )


def test_a_folder_that_is_named_by_dots_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = clip_folder(tmp_path / "clip-tiny")
    save_tiny(tmp_path / "tiny" / "checkpoints" / "step_00000007")
    (folder / "within").mkdir()
    monkeypatch.chdir(folder / "within")
    assert [candidate.name for candidate in found(tmp_path, "..")] == ["clip-tiny"]
    monkeypatch.chdir(tmp_path / "tiny" / "checkpoints")
    assert [candidate.name for candidate in found(tmp_path, "..")] == ["tiny/step_00000007"]


def test_weights_that_no_checkpoint_has_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights=foo is not one of model, ema"):
        found(tmp_path, str(tmp_path / "nothing"), weights="foo")


def test_a_model_that_nothing_describes_is_refused(
    tmp_path: Path, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*ViT-huge\.json, which would describe 'ViT-huge'"):
        found(tmp_path, f"ViT-huge:{tmp_path}/epoch_32.pt", **bare)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; set open_clip\.model_configs"):
        found(tmp_path, f"ViT-tiny:{tmp_path}/epoch_32.pt")
