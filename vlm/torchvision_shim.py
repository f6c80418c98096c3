"""Lets torchvision import beside a torch without CUDA.

torchvision's published wheels are CUDA builds. Beside a CPU build of torch their compiled part does not
load, and `import torchvision` then fails on the two operators it registers fake kernels for; timm and
lightning fail with it. Declaring the two schemas first is enough: what we use of torchvision is Python.
"""

import importlib.util
from pathlib import Path

import torch

_library: torch.library.Library | None = None


def install() -> None:
    """Declare `torchvision::nms` and `::qnms` where torchvision's compiled part cannot load."""
    global _library  # a Library undoes its definitions when collected, so it must outlive this call
    spec = importlib.util.find_spec("torchvision")
    gpu_build = torch.version.cuda is not None or torch.version.hip is not None
    if _library is not None or gpu_build or spec is None or spec.origin is None:
        return
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return
        except OSError:
            continue
    _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
