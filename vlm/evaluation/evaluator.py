"""What an evaluation is, and how a suite of them is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from PIL import Image

from vlm.data import ImageFile, ImageSet, ImageSource, open_shards, read_images, read_records
from vlm.errors import ConfigError, DataError
from vlm.evaluation.outcomes import Outcomes
from vlm.inference import Embedder, Pictures
from vlm.models import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Numbers of one evaluation, and what a report shows of it."""

    task: str
    """As CLIP_benchmark names it: `zeroshot_classification`, `zeroshot_retrieval`, `image_caption_selection`,
    `captioning` or `linear_probe`; and `knn`, `image_retrieval`, `multilabel_classification`, `few_shot` and
    `pair_scoring`, which it does not have."""
    metrics: dict[str, float]
    chance: dict[str, float]
    """What guessing gets, for the metrics where that is known."""
    num_samples: int
    details: dict[str, Any]
    """Examples for the report, as plain data. A picture is its position in `details["shards"]`, the parts of
    one or several data sets, each standing behind the one before; `details["pictures"]` lists all that are
    used."""
    notes: Mapping[str, int | float | str] = field(default_factory=dict)
    """What is no score but belongs to them, such as the weight that a sweep chose."""
    text_only: Mapping[str, float] = field(default_factory=dict)
    """What a reader of the captions alone gets, for the metrics where that can be said."""
    outcomes: tuple[Outcomes, ...] = field(default=(), compare=False)
    """What each query got, for the metrics that are means over queries; each metric stands in one of them."""


@runtime_checkable
class Evaluator(Protocol):
    """One evaluation of a model; its name is its key in `suite.evaluators`.

    It runs on every rank and returns the same on every rank.
    """

    needs: ClassVar[frozenset[str]]
    """Parts that a model must have, by their keys: `text`, `text_decoder`, `image_decoder`."""

    def __call__(self, embedder: Embedder) -> Result: ...

    def check(self) -> None:
        """Read everything but the pictures, so that what is wrong there is said before any training.

        Raises:
            VlmError: what a call would raise.
        """
        ...


_WITHOUT = {
    "text": (
        "compare images with texts, but the model has no text tower (model.text=null); suite=vision does "
        "without"
    ),
    "text_decoder": (
        "take captions that the model writes, but it has no text decoder (model.text_decoder=null); train "
        "one with objective=coca, or name another suite"
    ),
    "image_decoder": (
        "rebuild images, but the model has no image decoder (model.image_decoder=null); train one with "
        "objective=sycoca, or name another suite"
    ),
}


def check_parts(evaluators: Mapping[str, Evaluator], spec: ModelSpec) -> None:
    """Check that a model has the parts that it is asked about.

    Raises:
        ConfigError: naming who asks.
    """
    for part, message in _WITHOUT.items():
        asking = [name for name, evaluator in evaluators.items() if part in evaluator.needs]
        if asking and getattr(spec, part) is None:
            raise ConfigError(f"suite: {', '.join(asking)} {message}")


def run_suite(evaluators: Mapping[str, Evaluator], embedder: Embedder) -> dict[str, Result]:
    """Run every evaluator, in the order given, on every rank."""
    return {name: evaluator(embedder) for name, evaluator in evaluators.items()}


def parts(*pictures: Pictures) -> list[str | ImageSource]:
    """Data sets as one list, each behind the one before: patterns, and sources of image files."""
    return [part for one in pictures for part in ([one] if isinstance(one, str | ImageSource) else one)]


def records_of(pictures: Pictures, *, key: str = "shards") -> list[dict[str, Any]]:
    """The records of a data set without its pictures.

    Args:
        key: of the evaluator that names the data set, for messages.

    Raises:
        DataError: there are none, or an image file is missing.
    """
    if isinstance(pictures, ImageSource):
        records = list(_complete(pictures).records)
    else:
        records = list(read_records(open_shards(pictures, key=key)))
    if not records:
        raise DataError(f"{key}={pictures!r} hold no samples")
    return records


def _complete(source: ImageSource) -> ImageSet:
    images = source.read()
    missing = images.missing()
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images.files)} pictures of {source} are missing, the first would be "
            f"{missing[0]}; correct the folder of the pictures, or leave these out of the list"
        )
    return images


def places_of(pictures: Pictures, *, key: str) -> set[str | ImageFile]:
    """The shards or image files of a data set."""
    if isinstance(pictures, ImageSource):
        return set(pictures.read().files)
    return set(open_shards(pictures, key=key).urls)


def pictures_at(pictures: Sequence[str | ImageSource], positions: Sequence[int]) -> list[Image.Image]:
    """The pictures at some positions of data sets that stand one behind the other, as `parts` lists them.

    Raises:
        DataError: one cannot be read.
    """
    found: dict[int, Image.Image] = {}
    start = 0
    for part in pictures:
        if isinstance(part, ImageSource):
            files = part.read().files
            own = range(start, start + len(files))
            found |= {position: files[position - start].open() for position in positions if position in own}
        else:
            shards = open_shards(part, key="shards")
            own = range(start, start + shards.num_samples)
            wanted = sorted({position for position in positions if position in own})
            rows = [position - start for position in wanted]
            found |= dict(zip(wanted, read_images(shards, rows), strict=True))
        start = own.stop
    return [found[position] for position in positions]


def spread(count: int, *, wanted: int) -> list[int]:
    """At most `wanted` of the positions 0..count-1, evenly spaced: examples that do not depend on chance."""
    wanted = min(wanted, count)
    return [position * count // wanted for position in range(wanted)]
