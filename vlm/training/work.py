"""The arithmetic of the towers on a rank, for FLOP/s and their share of the peak of the device (MFU)."""

import logging

import numpy as np
import torch

from vlm.errors import ConfigError
from vlm.models import ModelSpec, tower_flops
from vlm.types import Batch

log = logging.getLogger(__name__)

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12}
"""FLOP/s of dense bfloat16 products, by what the name of a GPU contains; MFU is a share of this."""


class Work:
    """Adds up the operations of steps: two for each multiply-add, a backward as two forwards, nothing twice:
    not what activation checkpointing or micro-batches run again.

    Padding up to the longest text of a batch counts, as the tower computes it; the loss does not count, nor
    does a teacher.
    """

    def __init__(self, image: float = 0.0, text: tuple[float, float] = (0.0, 0.0), peak: float | None = None):
        self.image = image
        self.text = text
        self.peak = peak
        self._flops = 0.0

    @classmethod
    def of(cls, spec: ModelSpec, device: torch.device) -> "Work":
        """For a model with its vocabulary; counts nothing where a tower cannot run without a device."""
        longest = spec.text.context_length if spec.text else 0
        lengths = sorted({max(1, longest // 2), longest}) if spec.text else []
        try:
            image, texts = tower_flops(spec, text_lengths=lengths)
        except ConfigError as error:
            log.info("time/tflops and time/mfu are not logged: %s", error)
            return cls()
        if not lengths:
            return cls(float(image), peak=_peak(device))
        # Of a text's length, a transformer takes a linear and a quadratic part.
        powers = [[length, length**2][: len(lengths)] for length in lengths]
        linear, *quadratic = np.linalg.solve(powers, texts)
        text = (float(linear), float(quadratic[0]) if quadratic else 0.0)
        return cls(float(image), text, _peak(device))

    def add(self, batch: Batch) -> None:
        """A step over these rows."""
        rows, length = len(batch["image"]), batch["text"].shape[1] if "text" in batch else 0
        texts = rows + (batch["negative_mask"].numel() if "negative_mask" in batch else 0)
        self._flops += 3 * rows * self.image + 3 * texts * (self.text[0] * length + self.text[1] * length**2)

    def read(self) -> dict[str, float]:
        """`tflops`, and `mfu` on a GPU whose peak is known, both times seconds, since the last reading."""
        flops, self._flops = self._flops, 0.0
        if not flops:
            return {}
        return {"tflops": flops / 1e12} | ({"mfu": flops / self.peak} if self.peak else {})


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
