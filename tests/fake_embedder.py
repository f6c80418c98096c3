"""An embedder whose vectors are written down, for tests of what is made of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm.data import ImageFile
from vlm.distributed import Topology
from vlm.inference import Decoding, Embedder, ImageEmbeddings, TextEmbeddings

GREEDY: dict[str, Any] = {
    "strategy": "greedy",
    "beams": 1,
    "top_p": 1.0,
    "temperature": 1.0,
    "max_length": None,
    "seed": 0,
}
"""The fields of `Decoding`."""


class FakeEmbedder(Embedder):
    def __init__(
        self, *, texts: dict[str, list[float]], images: list[list[float]], records: list[dict[str, Any]]
    ) -> None:
        self.topology = Topology.current()
        self.vectors = texts
        self.rows = images
        self.records = records

    def images(self, shards: str | Sequence[str]) -> ImageEmbeddings:
        return ImageEmbeddings(torch.tensor(self.rows, dtype=torch.float32), self.records)

    def image_files(self, files: Sequence[ImageFile]) -> ImageEmbeddings:
        """The written rows for files named by their number, such as `0.png`."""
        rows = [self.rows[int(Path(file.path).stem)] for file in files]
        return ImageEmbeddings(
            torch.tensor(rows, dtype=torch.float32), [{"key": file.path} for file in files]
        )

    def texts(self, texts: Sequence[str], *, ensemble: int = 1) -> TextEmbeddings:
        """Texts of more than 20 characters are too long."""
        vectors = torch.tensor([self.vectors[text] for text in texts], dtype=torch.float32)
        means = torch.stack([own.mean(dim=0) for own in vectors.split(ensemble)])
        return TextEmbeddings(
            torch.nn.functional.normalize(means, dim=-1) if ensemble > 1 else vectors,
            sum(len(text) > 20 for text in texts) / len(texts),
        )


class FakeSets(Embedder):
    """Several data sets of pictures by name, each as vectors and the class of each picture."""

    device = torch.device("cpu")

    def __init__(self, **sets: tuple[torch.Tensor, Sequence[int | str]]) -> None:
        self.topology = Topology.current()
        self.progress = False
        self.between_batches = None
        self.sets = {
            name: ImageEmbeddings(
                features.float(), [{"key": str(row), "cls": value} for row, value in enumerate(labels)]
            )
            for name, (features, labels) in sets.items()
        }

    def images(self, shards: str | Sequence[str]) -> ImageEmbeddings:
        assert isinstance(shards, str)
        return self.sets[shards]


class WritesCaptions(Embedder):
    """Captions that are written down, None for a picture that cannot be read."""

    written: Sequence[str | None]

    def captions(self, shards: Sequence[str], decoding: Decoding) -> list[str]:
        return [caption or "" for caption in self.written]

    def captions_of_files(self, files: Sequence[ImageFile], decoding: Decoding) -> list[str | None]:
        """The written captions for files named by their number, such as `0.png`."""
        return [self.written[int(Path(file.path).stem)] for file in files]

    def caption_likelihood(
        self, shards: Sequence[str], texts: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Every character is a token, and costs log 3 in the first caption of a picture, else log 2."""
        pairs = [(text, 2 + (place == 0)) for own in texts for place, text in enumerate(own)]
        nats = [len(text) * math.log(choices) for text, choices in pairs]
        return np.array(nats), np.array([len(text) for text, _ in pairs])


class FakeWriter(WritesCaptions):
    def __init__(self, *written: str | None) -> None:
        self.topology = Topology.current()
        self.written = written
