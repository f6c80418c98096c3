"""Towers over data sets and lists of texts, on all ranks, in the order of the data."""

import math
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from vlm.data import (
    EvalBatch,
    ImageFile,
    ImageSource,
    ShardSet,
    eval_loader,
    image_file_loader,
    open_shards,
)
from vlm.distributed import Topology, gather_objects, mean_over_ranks
from vlm.errors import ConfigError, DataError
from vlm.inference.decoding import Decoding
from vlm.inference.load import Loaded
from vlm.inference.rebuild import Rebuilder, Rebuilt
from vlm.inference.writer import Writer
from vlm.models import DualEncoder

T = TypeVar("T")
Compute = Callable[[DualEncoder, Tensor, Tensor], T]

Patterns = str | Sequence[str]
"""Of shards, as `data.train.shards` takes them."""
Pictures = Patterns | ImageSource
"""A data set: shards, or image files and what belongs to them."""


class ImageEmbeddings(NamedTuple):
    """Unit vectors of a data set and what else stands in its samples, row by row in its order."""

    features: Float[Tensor, "n d"]
    """fp32, on the CPU."""
    records: list[dict[str, Any]]
    """`key` and the decoded members of each sample (`txt`, `cls`, `json`), without the picture."""


class TextEmbeddings(NamedTuple):
    """Unit vectors of texts, or of ensembles of texts."""

    features: Float[Tensor, "m d"]
    """fp32, on the CPU."""
    truncated: float
    """The share of texts that are longer than the context, whose ends the model does not see."""


class CaptionLine(NamedTuple):
    """The caption of a picture, or why there is none."""

    row: int
    key: str
    caption: str | None
    unreadable: str | None


class Embedder:
    """A model's unit vectors of pictures and texts.

    Every rank makes the same calls in the same order and gets the vectors of all: batch j is encoded by
    rank j mod W, each rank runs as many forwards as any other, and what a batch holds does not depend on
    the number of ranks. The model is in evaluation mode for the time of a call.

    Args:
        batch_size: rows of one forward.
        num_workers: processes of this rank that decode pictures; 0 decodes in this one.
        bf16: autocast to bfloat16.
        progress: show a bar on the main rank.
        between_batches: called after each batch, as often on every rank; what it raises ends the work.
    """

    def __init__(
        self,
        loaded: Loaded,
        topology: Topology,
        *,
        batch_size: int,
        num_workers: int,
        bf16: bool = False,
        progress: bool = False,
        between_batches: Callable[[], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.topology = topology
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.bf16 = bf16
        self.progress = progress
        self.between_batches = between_batches
        self._last: dict[tuple[str | ImageFile, ...], ImageEmbeddings] = {}

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.loaded.model.logit_scale.device

    def images(self, pictures: Pictures) -> ImageEmbeddings:
        """Embed a data set.

        The last two are remembered by their patterns or files: evaluations often look at one data set in
        turn, and a probe at a training and a test set.

        Raises:
            DataError: an image cannot be read.
        """
        if not isinstance(pictures, ImageSource):
            asked = (pictures,) if isinstance(pictures, str) else tuple(pictures)
            return self._remembered(asked, lambda: self._embed_images(asked))
        images = pictures.read()
        found = self._remembered(tuple(images.files), lambda: self.image_files(images.files))
        _refuse_unreadable(found.records, pictures)
        # The same files may stand in another data set with other captions.
        return ImageEmbeddings(found.features, list(images.records))

    def _remembered(
        self, asked: tuple[str | ImageFile, ...], embed: Callable[[], ImageEmbeddings]
    ) -> ImageEmbeddings:
        found = self._last.pop(asked, None)
        if found is None:
            for oldest in list(self._last)[:-1]:
                del self._last[oldest]  # three large data sets need not fit in memory
            found = embed()
        self._last[asked] = found
        return found

    def image_files(self, files: Sequence[ImageFile]) -> ImageEmbeddings:
        """Embed image files; not remembered.

        The record of a file that is missing or no image says why under `unreadable`; its vector means
        nothing.
        """
        return self._embed(image_file_loader(files, **self._loading), num_images=len(files))

    def texts(self, texts: Sequence[str], *, ensemble: int = 1) -> TextEmbeddings:
        """Embed texts. Equal ones are encoded once and get the very same vector.

        Args:
            ensemble: so many texts after each other become one vector, the mean of theirs, normalised again
                (arXiv:2103.00020, section 3.1.4).

        Raises:
            ConfigError: the model has no text tower.
        """
        tokenizer = self.loaded.tokenizer
        if tokenizer is None:
            raise ConfigError("the model has no text tower, and this evaluation compares images with texts")
        distinct = sorted(dict.fromkeys(texts), key=len)  # a batch is as wide as its longest
        position = {text: row for row, text in enumerate(distinct)}
        batches = [
            distinct[start : start + self.batch_size] for start in range(0, len(distinct), self.batch_size)
        ]
        rank, world = self.topology.rank, self.topology.world_size
        rounds = range(rank, math.ceil(len(batches) / world) * world, world)
        own: dict[int, tuple[np.ndarray[Any, Any], list[bool]]] = {}
        with self._model() as (model, device):
            for number in self._rounds(rounds, "embedding texts", total=len(rounds)):
                ids, cut = tokenizer.tokenize(batches[min(number, len(batches) - 1)])
                own[number] = model.encode_text(ids.to(device)).float().cpu().numpy(), cut
        found = {number: part for parts in gather_objects(own) for number, part in parts.items()}
        rows = [position[text] for text in texts]
        vectors = torch.from_numpy(np.concatenate([found[number][0] for number in range(len(batches))])[rows])
        if ensemble > 1:
            vectors = normalize(vectors.reshape(-1, ensemble, vectors.shape[1]).mean(dim=1), dim=-1)
        truncated = np.concatenate([found[number][1] for number in range(len(batches))])[rows]
        return TextEmbeddings(vectors, float(truncated.mean()))

    def captions(self, pictures: Pictures, decoding: Decoding) -> list[str | None]:
        """A caption for each picture of a data set, in its order; None where it cannot be read.

        Raises:
            ConfigError: the model has no text decoder.
        """
        return [line.caption for lines in self.write(_opened(pictures), decoding) for line in lines]

    def captions_of_files(self, files: Sequence[ImageFile], decoding: Decoding) -> list[str | None]:
        """A caption for each image file, or None where it is no image."""
        return [line.caption for lines in self.write(files, decoding) for line in lines]

    def write(
        self, source: ShardSet | Sequence[ImageFile], decoding: Decoding, *, first: int = 0
    ) -> Iterator[list[CaptionLine]]:
        """Captions as they are made, in the order of the pictures, on every rank all of them.

        Args:
            first: of the pictures, those before which are left out.

        Raises:
            ConfigError: the model has no text decoder.
        """
        writer = Writer(self.loaded)
        loader, count = self._loader(source, first=first), _num_images(source)

        def written(model: DualEncoder, images: Tensor, rows: Tensor) -> list[str]:
            return writer(images, decoding, numbers=rows.tolist() or [0], finished=self._finished)

        for batch, captions in self._computed(loader, written, "writing captions", count - first):
            own = [
                CaptionLine(row, record["key"], caption if reason is None else None, reason)
                for row, record, caption in zip(batch.indices.tolist(), batch.records, captions, strict=False)
                for reason in [record.get("unreadable")]
            ]
            yield sorted(line for lines in gather_objects(own) for line in lines)

    def caption_likelihood(
        self, pictures: Pictures, texts: Sequence[Sequence[str]]
    ) -> tuple[Float64[ndarray, " n"], Int64[ndarray, " n"]]:
        """What the captions of each picture of a data set cost in nats, and how many tokens they have.

        Args:
            texts: of each sample; what is given for them stands one sample after the other. Of a picture that
                cannot be read it means nothing.
        """
        writer = Writer(self.loaded)
        most = max(map(len, texts), default=0)

        def costs(model: DualEncoder, images: Tensor, rows: Tensor) -> list[list[tuple[float, int]]]:
            return writer.costs([texts[row] for row in rows.tolist()], images, rounds=most)

        source = _opened(pictures)
        found = self._each(self._loader(source), costs, "weighing captions", _num_images(source))
        pairs = [pair for row in found for pair in row]
        return np.array([cost for cost, _ in pairs], np.float64), np.array([n for _, n in pairs], np.int64)

    def rebuilt(
        self,
        pictures: Pictures,
        texts: Sequence[str],
        others: Sequence[str],
        *,
        share: float,
        normalise: bool,
        shown: Container[int],
    ) -> list[Rebuilt]:
        """What is rebuilt of each picture of a data set, under its text and under another.

        Args:
            share: of the patches, those that the text is about most, which are hidden.
            normalise: whether the model rebuilds patches up to their brightness and contrast.
            shown: numbers of the pictures that are given out as pictures.

        Raises:
            ConfigError: the model has no image decoder.
        """
        rebuilder = Rebuilder(self.loaded, share=share, normalise=normalise)

        def compute(model: DualEncoder, images: Tensor, rows: Tensor) -> list[Rebuilt]:
            numbers = rows.tolist() or [0]
            own, other = ([given[row] for row in numbers] for given in (texts, others))
            return rebuilder(images, own, other, shown=[row in shown for row in numbers])

        source = _opened(pictures)
        loader = self._loader(source, unreadable=False)
        return self._each(loader, compute, "rebuilding pictures", _num_images(source))

    def _finished(self, own: bool) -> bool:
        """Whether all ranks are: those that share a model's weights stop together."""
        return bool(mean_over_ranks(torch.tensor(float(own), device=self.device)) == 1)

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "preprocess": self.loaded.preprocess,
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "rank": self.topology.rank,
            "world_size": self.topology.world_size,
        }

    def _loader(
        self, source: ShardSet | Sequence[ImageFile], *, unreadable: bool = True, first: int = 0
    ) -> Iterable[EvalBatch]:
        """A picture that cannot be read is blank, and `unreadable` of its record says why; else an error."""
        if isinstance(source, ShardSet):
            return eval_loader(source, unreadable=unreadable, first=first, **self._loading)
        return image_file_loader(source, unreadable=unreadable, first=first, **self._loading)

    def _embed_images(self, shards: Sequence[str]) -> ImageEmbeddings:
        shard_set = open_shards(shards, key="shards")
        found = self._embed(
            eval_loader(shard_set, unreadable=True, **self._loading), num_images=shard_set.num_samples
        )
        _refuse_unreadable(found.records, ", ".join(shards))
        return found

    def _embed(self, loader: Iterable[EvalBatch], *, num_images: int) -> ImageEmbeddings:
        rows: list[np.ndarray[Any, Any]] = []
        features: list[np.ndarray[Any, Any]] = []
        records: list[dict[str, Any]] = []
        for batch, vectors in self._computed(
            loader, lambda model, images, _: model.encode_image(images), "embedding images", num_images
        ):
            rows.append(batch.indices.numpy())
            features.append(vectors[: len(batch.indices)].float().cpu().numpy())
            records += batch.records
        parts = gather_objects((np.concatenate(rows), np.concatenate(features), records))
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        everything = [record for part in parts for record in part[2]]
        return ImageEmbeddings(
            features=torch.from_numpy(np.concatenate([part[1] for part in parts])[order]),
            records=[everything[row] for row in order],
        )

    def _each(
        self, loader: Iterable[EvalBatch], compute: Compute[Sequence[T]], what: str, num_images: int
    ) -> list[T]:
        """What `compute` gives for each image, in their order."""
        own: dict[int, T] = {}
        for batch, values in self._computed(loader, compute, what, num_images):
            own |= dict(zip(batch.indices.tolist(), values, strict=False))  # a blank one has no index
        everything = {row: value for part in gather_objects(own) for row, value in part.items()}
        return [everything[row] for row in range(num_images)]

    def _computed(
        self, loader: Iterable[EvalBatch], compute: Compute[T], what: str, num_images: int
    ) -> Iterator[tuple[EvalBatch, T]]:
        """This rank's batches, and what `compute` gives for model, images and indices of each."""
        rounds = math.ceil(num_images / (self.batch_size * self.topology.world_size))
        with self._model() as (model, device):
            for batch in self._rounds(loader, what, total=rounds):
                yield batch, compute(model, batch.images.to(device, non_blocking=True), batch.indices)

    @contextmanager
    def _model(self) -> Iterator[tuple[DualEncoder, torch.device]]:
        """The model in evaluation mode without gradients, every module's own mode restored at the end."""
        model = self.loaded.model
        device = self.device
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            # no_grad, not inference_mode: what a sharded model gathers here must serve training afterwards.
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                yield model, device
        finally:
            for module, training in modes.items():
                module.training = training

    def _rounds(self, items: Iterable[T], what: str, *, total: int) -> Iterator[T]:
        shown = self.progress and self.topology.is_main and total > 1 and sys.stderr.isatty()
        with tqdm(items, desc=what, total=total, unit="batch", leave=False, disable=not shown) as bar:
            for item in bar:
                yield item
                if self.between_batches is not None:
                    self.between_batches()


def _opened(pictures: Pictures) -> ShardSet | Sequence[ImageFile]:
    if isinstance(pictures, ImageSource):
        return pictures.read().files
    return open_shards(pictures, key="shards")


def _num_images(source: ShardSet | Sequence[ImageFile]) -> int:
    return source.num_samples if isinstance(source, ShardSet) else len(source)


def _refuse_unreadable(records: Sequence[Mapping[str, Any]], pictures: object) -> None:
    """Of all ranks alike: one that stopped alone would leave the others waiting."""
    reasons = [record["unreadable"] for record in records if "unreadable" in record]
    if reasons:
        raise DataError(
            f"{len(reasons)} of {len(records)} pictures of {pictures} cannot be read; the first: {reasons[0]}"
            "; restore them, or leave them out of the list"
        ).on_all_ranks()
