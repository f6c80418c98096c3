"""Graphs of both towers for ONNX Runtime, from bytes and ids to unit vectors."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.files import write_json
from vlm.inference.checkpoint import TOKENIZER
from vlm.inference.export.opened import Opened
from vlm.inference.export.source import Source

IMAGE, TEXT, PREPROCESS = "image.onnx", "text.onnx", "preprocess.json"
_VECTORS = "vectors"
_LARGEST = 2**31 - 2**26  # bytes of a protobuf, and room for the graph


class _Tower(nn.Module):
    """One of a model's encoders, as a module."""

    def __init__(self, source: Source, name: str) -> None:
        super().__init__()
        self.model = source.vectors
        self.encode = getattr(source.vectors, f"encode_{name}")

    def forward(self, rows: Tensor) -> Tensor:
        return self.encode(rows)  # type: ignore[no-any-return]


def kind_of(source: Source) -> str:
    """Every model has graphs."""
    return "ONNX graphs" if source.spec.text is not None else "an ONNX graph"


def write(source: Source, folder: Path) -> None:
    """Write a graph for each tower, the tokenizer, and what has to be done before either."""
    side = source.spec.image.image_size
    batch = torch.export.Dim("batch")
    image = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    _write_graph(source, "image", image, {0: batch}, folder / IMAGE)
    said: dict[str, Any] = {"image": _image_facts(source)}
    if source.spec.text is not None:
        text, tokenizer = source.spec.text, source.tokenizer
        length = torch.export.Dim("length", min=1, max=text.context_length)
        rows = torch.full((2, min(text.context_length, 8)), tokenizer.eot_id)
        _write_graph(source, "text", rows, {0: batch, 1: length}, folder / TEXT)
        tokenizer.save(folder / TOKENIZER)
        said["text"] = _text_facts(source)
    bias = source.vectors.logit_bias
    said["logit_scale"] = source.vectors.logit_scale.exp().item()
    said["logit_bias"] = None if bias is None else bias.item()
    write_json(folder / PREPROCESS, said, indent=2)


def open_folder(source: Source, folder: Path) -> Opened:
    """What ONNX Runtime makes of the graphs."""
    import onnxruntime

    def run(path: Path, rows: Tensor) -> Tensor:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return torch.from_numpy(session.run([_VECTORS], {name: rows.numpy()})[0])

    has_text = source.spec.text is not None
    end = source.tokenizer.eot_id if has_text else 0
    return Opened(
        library=f"onnxruntime {onnxruntime.__version__}",
        image=lambda image: run(folder / IMAGE, image),
        text=(lambda text: run(folder / TEXT, text)) if has_text else None,
        tokens=None,
        eot_id=end,
        padding=0,
    )


def _write_graph(source: Source, name: str, rows: Tensor, dynamic: dict[int, Any], path: Path) -> None:
    tower = _Tower(source, name).eval()
    size = sum(part.numel() * part.element_size() for part in tower.parameters())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own insides
        graph = torch.onnx.export(
            tower,
            (rows,),
            dynamo=True,
            input_names=[name],
            output_names=[_VECTORS],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert graph is not None
    graph.save(path, external_data=size > _LARGEST)


def _image_facts(source: Source) -> dict[str, Any]:
    side = source.spec.image.image_size
    return {
        "input": "image",
        "type": "uint8",
        "shape": ["batch", 3, side, side],
        "values": "red, green, blue from 0 to 255; the graph normalises",
        "output": _VECTORS,
        **source.preprocess.to_mapping(),
    }


def _text_facts(source: Source) -> dict[str, Any]:
    text = source.spec.text_tower
    return {
        "input": "text",
        "type": "int64",
        "shape": ["batch", "length"],
        "values": "ids of tokenizer.json; what stands behind the end of text is not read",
        "output": _VECTORS,
        "context_length": text.context_length,
        "eot_id": text.eot_id,
    }
