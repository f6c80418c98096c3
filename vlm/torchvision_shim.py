"""Lets torchvision import beside a torch without CUDA.

torchvision's published wheels are CUDA builds. Beside a CPU build of torch their compiled part does not
load, and `import torchvision` then fails on the two operators it registers fake kernels for; timm and
lightning fail with it. Declaring the two schemas first is enough: what we use of torchvision is Python.

That takes torch, so it waits until somebody looks for torchvision: `import vlm` alone stays cheap.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = "torchvision"


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; is asked first where torchvision is."""

    def __init__(self) -> None:
        self._asked = False
        self._library: Any = None  # it undoes its definitions when collected, so it must outlive torchvision

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == _NAME and not self._asked:
            self._asked = True  # what follows looks for torchvision itself
            self._library = _declare()
        return None


def install() -> None:
    """Make torchvision importable in this process, whoever imports it; before anybody does."""
    sys.meta_path.insert(0, _BeforeTorchvision())


def _declare() -> Any:
    """Declare `torchvision::nms` and `::qnms` where torchvision's compiled part cannot load."""
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.origin is None:
        return None
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return None
        except OSError:
            continue
    library = torch.library.Library(_NAME, "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library
