"""How well hidden patches are rebuilt from a caption and the rest of the image."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from PIL import Image

from vlm.data import data_uri
from vlm.errors import ConfigError
from vlm.evaluation.evaluator import Result, records_of, spread
from vlm.evaluation.fields import every_caption
from vlm.inference import Embedder, Pictures, Rebuilt

_SIDE = 128


class Reconstruction:
    """Rebuild the patches that a caption is about most, under that caption and under another's.

    Metrics: `error`, the mean squared error of hidden patches under the picture's first caption;
    `error_other`, under that of the next picture that has another; `helped`, the share of pictures that
    their own caption rebuilds better.

    Args:
        captions: fields of a sample, as `Retrieval` takes them.
        masked_share: of the patches, which are hidden.
        normalise_patches: as the model was trained; else errors are in normalised pixels.
        num_examples: pictures in the report.

    Raises:
        ConfigError: a value is out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text", "image_decoder"})

    def __init__(
        self,
        shards: Pictures,
        captions: str | Sequence[str],
        *,
        masked_share: float,
        normalise_patches: bool,
        num_examples: int,
    ) -> None:
        if not 0 < masked_share < 1:
            raise ConfigError(f"masked_share={masked_share} must be above 0 and below 1")
        self.shards = shards
        self.fields = [captions] if isinstance(captions, str) else list(captions)
        self.masked_share = masked_share
        self.normalise_patches = normalise_patches
        self.num_examples = num_examples

    def check(self) -> None:
        self._captions()

    def __call__(self, embedder: Embedder) -> Result:
        captions = self._captions()
        others = _others(captions)
        shown = spread(len(captions), wanted=self.num_examples)
        rebuilt = embedder.rebuilt(
            self.shards,
            captions,
            others,
            share=self.masked_share,
            normalise=self.normalise_patches,
            shown=frozenset(shown),
        )
        return Result(
            task="image_reconstruction",
            metrics={
                "error": fmean(one.error for one in rebuilt),
                "error_other": fmean(one.error_under_other for one in rebuilt),
                "helped": fmean(_won(one) for one in rebuilt),
            },
            chance={"helped": 0.5, **({"error": 1.0} if self.normalise_patches else {})},
            num_samples=len(rebuilt),
            details={
                "examples": [_example(rebuilt[row], captions[row], others[row]) for row in shown],
                "pictures": [],
            },
            notes={"masked_share": self.masked_share},
        )

    def _captions(self) -> list[str]:
        """The first of each sample."""
        return [every_caption(record, self.fields)[0] for record in records_of(self.shards)]


def _won(one: Rebuilt) -> float:
    return 0.5 if one.error == one.error_under_other else float(one.error < one.error_under_other)


def _others(captions: Sequence[str]) -> list[str]:
    """For each the next that differs; itself where all are equal."""
    count = len(captions)
    found = []
    for row, own in enumerate(captions):
        following = (captions[(row + step) % count] for step in range(1, count))
        found.append(next((caption for caption in following if caption != own), own))
    return found


def _example(rebuilt: Rebuilt, caption: str, other: str) -> dict[str, Any]:
    assert rebuilt.pictures is not None
    pictures = {
        name: data_uri(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
        for name, pixels in rebuilt.pictures._asdict().items()
    }
    return {
        "caption": caption,
        "other": other,
        "error": rebuilt.error,
        "error_other": rebuilt.error_under_other,
        "pictures": pictures,
    }
