"""An embedder whose vectors are written down, for tests of what is made of them."""

from collections.abc import Sequence
from typing import Any

import torch

from vlm.inference import Embedder, ImageEmbeddings


class FakeEmbedder(Embedder):
    def __init__(
        self, *, texts: dict[str, list[float]], images: list[list[float]], records: list[dict[str, Any]]
    ) -> None:
        self.vectors = texts
        self.rows = images
        self.records = records

    def images(self, shards: str | Sequence[str]) -> ImageEmbeddings:
        return ImageEmbeddings(torch.tensor(self.rows, dtype=torch.float32), self.records)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.vectors[text] for text in texts], dtype=torch.float32)
