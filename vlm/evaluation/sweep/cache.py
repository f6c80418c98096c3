"""Vectors of pictures and texts that a checkpoint has made before."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm.data import ImageFile, open_shards
from vlm.distributed import gather_objects
from vlm.evaluation.sweep.identity import VECTORS, Digests, digest_of, status_of
from vlm.files import replacing, writing
from vlm.inference import Embedder, ImageEmbeddings, TextEmbeddings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingCache:
    """A folder of vectors, each file named by what made it; any number of processes may share it.

    A file holds `vectors`, fp32 [rows, dim], and as json `records`: of pictures their samples, of texts the
    share that was cut. Its metadata has the sha256 of both; a file that is damaged is made again.
    """

    folder: Path

    def read(self, name: str) -> tuple[Tensor, list[dict[str, Any]]] | None:
        """Vectors and records; None where there are none, or they are damaged."""
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                vectors, records = file.get_tensor("vectors"), file.get_tensor("records")
                written = (file.metadata() or {}).get("sha256")
            if written != _sha256(vectors, records):
                raise ValueError("its bytes are not those that were written")
            return vectors, json.loads(records.numpy().tobytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            logger.warning("%s is damaged and made again: %s", path, error)
            return None

    def write(self, name: str, vectors: Tensor, records: Sequence[dict[str, Any]] = ()) -> None:
        """Keep vectors.

        Raises:
            OutputError: the disk is full, or takes no files.
        """
        path = self.folder / f"{name}.safetensors"
        text = json.dumps(list(records), ensure_ascii=False, default=_plain).encode()
        encoded = torch.from_numpy(np.frombuffer(bytearray(text), np.uint8))
        vectors = vectors.contiguous()
        with writing(path, then="make room and type the same command again, it goes on"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as draft:
                tensors = {"vectors": vectors, "records": encoded}
                save_file(tensors, draft, metadata={"sha256": _sha256(vectors, encoded)})


@dataclass
class Work:
    """What was asked of a `CachedEmbedder`, by `images` and `texts`."""

    seconds: dict[str, float] = field(default_factory=lambda: {"images": 0.0, "texts": 0.0})
    """Spent on vectors, found or made."""
    cached: dict[str, bool] = field(default_factory=lambda: {"images": True, "texts": True})
    """Whether all were there before."""


class CachedEmbedder(Embedder):
    """An embedder that looks in a cache first.

    Args:
        cache: of vectors.
        digests: of the files that pictures lie in.
        made_by: sha256 of what makes vectors: weights, tokenizer, preprocessing and precision.
        how: arguments of `Embedder`.
    """

    def __init__(self, *args: Any, cache: EmbeddingCache, digests: Digests, made_by: str, **how: Any) -> None:
        super().__init__(*args, **how)
        self.cache = cache
        self.digests = digests
        self.made_by = made_by
        self.work = Work()
        """Since this was set to a new one."""

    def texts(self, texts: Sequence[str], *, ensemble: int = 1) -> TextEmbeddings:
        """As `Embedder.texts`; lists that were embedded before are not encoded."""
        make = super().texts

        def made() -> tuple[Tensor, list[dict[str, Any]]]:
            found = make(texts, ensemble=ensemble)
            return found.features, [{"truncated": found.truncated}]

        vectors, (about,) = self._kept("texts", self._named("texts", [ensemble, list(texts)]), made)
        return TextEmbeddings(vectors, about["truncated"])

    def image_files(self, files: Sequence[ImageFile]) -> ImageEmbeddings:
        """As `Embedder.image_files`; those that were embedded before are not read."""
        name = self._named("images", [[*file, *status_of(file.path)] for file in files])
        make = super().image_files
        return ImageEmbeddings(*self._kept("images", name, lambda: make(files)))

    def _embed_images(self, shards: Sequence[str]) -> ImageEmbeddings:
        # Asked of what is not remembered from just before.
        urls = open_shards(shards, key="shards").urls
        name = self._named("images", [self.digests.of_path(url) for url in urls])
        make = super()._embed_images
        return ImageEmbeddings(*self._kept("images", name, lambda: make(shards)))

    def _named(self, kind: str, content: Any) -> str:
        return f"{kind}_{digest_of([VECTORS, kind, self.made_by, content])[:40]}"

    def _kept(
        self, kind: str, name: str, make: Callable[[], tuple[Tensor, list[dict[str, Any]]]]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Vectors and records from the cache, or made and put there.

        The first rank looks for all: another might see a file that it does not see yet.
        """
        begin = time.perf_counter()
        kept = self.cache.read(name) if self.topology.is_main else None
        if self.topology.world_size > 1:
            kept = gather_objects(kept)[0]
        self.work.cached[kind] &= kept is not None
        if kept is None:
            kept = make()
            # A file that could not be read may be back the next time.
            if self.topology.is_main and not any("unreadable" in record for record in kept[1]):
                self.cache.write(name, *kept)
        self.work.seconds[kind] += time.perf_counter() - begin
        return kept


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """What json has no form for."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in json")
