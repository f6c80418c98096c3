"""Marks of tests that need GPUs."""

import pytest
import torch


def needs_gpus(number: int = 1) -> list[pytest.MarkDecorator]:
    """For a test, or for the `pytestmark` of a file."""
    found = torch.cuda.device_count()
    reason = f"needs {number} CUDA device{'s' * (number > 1)}, there are {found}"
    return [pytest.mark.gpu, pytest.mark.skipif(found < number, reason=reason)]
