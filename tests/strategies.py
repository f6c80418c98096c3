"""Which strategies can be tried on this machine."""

import importlib.util
import shutil
from typing import Any

import pytest

# DeepSpeed compiles its collectives for CPUs when they are first called.
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None and shutil.which("c++") is not None
needs_deepspeed = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="needs a C++ compiler and pip install -e '.[deepspeed]'"
)


def runnable(*strategies: str) -> list[Any]:
    """Parameters of a test; those of DeepSpeed are skipped where it is not installed."""
    return [pytest.param(s, marks=[needs_deepspeed] if "deepspeed" in s else []) for s in strategies]
