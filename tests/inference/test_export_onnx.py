"""ONNX Runtime gives the vectors of the source, for any number of images and texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exportable import checkpoint
from tiny_model import TEXTS
from torch import Tensor

import vlm
from vlm.inference.export import export_model

pytest.importorskip("onnx", reason="vlm[onnx] is not installed")
pytest.importorskip("onnxscript", reason="vlm[onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="vlm[onnx] is not installed")

TOLERANCE = 1e-4
RESNET = {"name": "resnet10t", "options": {"channels": [8, 8, 16, 16], "stem_width": 8}, "image_size": 32}
DECODER = {"layers": 1, "heads": 2, "activation": "gelu"}
BERT = TEXTS["transformers"]["options"] | {"vocab_size": 400, "max_position_embeddings": 16}


def run(path: Path, name: str, rows: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["vectors"], {name: rows.numpy()})[0])


def exported(tmp_path: Path, **changes: Any) -> tuple[Path, vlm.inference.Loaded]:
    source = checkpoint(tmp_path / "source", **changes)
    export_model(str(source), tmp_path / "out", format="onnx", weights="model")
    return tmp_path / "out", vlm.load(source)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vlm.inference.Loaded]:
    """Graphs of a CLIP, and their source."""
    return exported(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def require_equal(out: Path, loaded: vlm.inference.Loaded) -> None:
    side, generator = loaded.preprocess.image_size, torch.Generator().manual_seed(0)
    assert loaded.tokenizer is not None
    for count in (1, 3, 8):
        image = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        own = loaded.model.encode_image(image)
        torch.testing.assert_close(run(out / "image.onnx", "image", image), own, atol=TOLERANCE, rtol=0)
        text = loaded.tokenizer((["a red square", "灰色的正方形", "red"] * 3)[:count])
        own = loaded.model.encode_text(text)
        torch.testing.assert_close(run(out / "text.onnx", "text", text), own, atol=TOLERANCE, rtol=0)
        assert own.std() > 0.1


def test_vectors_equal_those_of_the_source_in_any_batch(clip: tuple[Path, vlm.inference.Loaded]) -> None:
    require_equal(*clip)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"pooling": "class"}, "image": RESNET},
        {"text": {"pooling": "class_open_clip"}, "text_decoder": DECODER},
        {"image_pooler": {"kind": "shared", "queries": 3, "heads": 2}},
        {"text": {"kind": "bag_of_words"}},
        {"text": {"kind": "transformers", "options": BERT}},
    ],
)
def test_vectors_of_other_models_equal_those_of_the_source(tmp_path: Path, changes: dict[str, Any]) -> None:
    require_equal(*exported(tmp_path, **changes))


def test_what_stands_beside_the_graphs_says_what_they_take(clip: tuple[Path, vlm.inference.Loaded]) -> None:
    out, loaded = clip
    said = json.loads((out / "preprocess.json").read_text())
    assert (said["image"]["type"], said["image"]["shape"]) == ("uint8", ["batch", 3, 16, 16])
    assert {
        name: said["image"][name] for name in loaded.preprocess.to_mapping()
    } == loaded.preprocess.to_mapping()
    assert said["logit_scale"] == pytest.approx(np.exp(2.0))
    check = json.loads((out / "export.json").read_text())["check"]
    assert check["against"].startswith("onnxruntime")
    assert 0 < check["images"] < check["tolerance"] == TOLERANCE


@pytest.mark.long
def test_a_model_of_images_alone_has_one_graph(tmp_path: Path) -> None:
    out, _ = exported(tmp_path, text=None)
    assert not (out / "text.onnx").exists()
    assert "text" not in json.loads((out / "preprocess.json").read_text())
    assert "pipeline_tag: image-feature-extraction" in (out / "README.md").read_text()
