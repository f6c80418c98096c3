"""Models of other projects among the checkpoints of a sweep."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign_models import clip_folder, write_tokenizer
from safetensors.torch import load_file

from vlm.errors import ConfigError
from vlm.evaluation.sweep import Candidate, OpenClip, find_candidates
from vlm.inference import load

OPEN_CLIP = Path(__file__).parents[1] / "inference" / "open_clip_tiny"


def found(folder: Path, pattern: str, **known: str) -> list[Candidate]:
    facts = {"model_configs": None, "tokenizer_path": None} | known
    return find_candidates(
        [pattern], weights="model", open_clip=OpenClip(**facts), imported=folder / "imported"
    )


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


def test_a_model_that_nothing_describes_is_refused(
    tmp_path: Path, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*ViT-huge\.json, which would describe 'ViT-huge'"):
        found(tmp_path, f"ViT-huge:{tmp_path}/epoch_32.pt", **bare)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; set open_clip\.model_configs"):
        found(tmp_path, f"ViT-tiny:{tmp_path}/epoch_32.pt")
