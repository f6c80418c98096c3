"""Caption choice: does a picture score its own caption above one that is almost the same."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from vlm.errors import DataError
from vlm.evaluation.evaluator import Result, records_of, spread
from vlm.evaluation.fields import captions_of
from vlm.inference import Embedder

TIE = 1e-6
"""Cosines closer than this count as equal: single precision cannot tell them apart, and a sum of the same
words in another order differs by about as much."""
NUM_EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class _Pair:
    sample: int
    true: str
    false: str


class CaptionChoice:
    """How often an image prefers its caption to a wrong one, for each kind of wrong caption.

    The metric of a kind is `<kind>_acc`: the share of (image, wrong caption) pairs that are won, a tie
    counting one half. A model that is blind to what the kind changes stands at 0.5.

    Args:
        shards: pattern, or list of patterns, of the data set.
        caption: field that holds the true caption.
        negatives: kind -> field with the wrong captions of that kind, a text or a list of any length; samples
            without one are left out of that kind.
    """

    needs_text: ClassVar[bool] = True

    def __init__(self, shards: str | Sequence[str], caption: str, *, negatives: Mapping[str, str]) -> None:
        self.shards = shards
        self.caption = caption
        self.negatives = dict(negatives)

    def check(self) -> None:
        records = records_of(self.shards)
        for kind in self.negatives:
            self._pairs(records, kind)

    def __call__(self, embedder: Embedder) -> Result:
        images = embedder.images(self.shards)
        metrics: dict[str, float] = {}
        examples: dict[str, Any] = {}
        for kind in self.negatives:
            pairs = self._pairs(images.records, kind)
            features = images.features[[pair.sample for pair in pairs]]
            true = (features * embedder.texts([pair.true for pair in pairs])).sum(dim=1)
            false = (features * embedder.texts([pair.false for pair in pairs])).sum(dim=1)
            metrics[f"{kind}_acc"] = choice_accuracy(true, false)
            examples[kind] = _examples(pairs, true, false)
        shown = [row["sample"] for kind in examples.values() for rows in kind.values() for row in rows]
        return Result(
            task="image_caption_selection",
            metrics=metrics,
            chance=dict.fromkeys(metrics, 0.5),
            num_samples=len(images.records),
            details={"shards": self.shards, "examples": examples, "pictures": sorted(set(shown))},
        )

    def _pairs(self, records: list[dict[str, Any]], kind: str) -> list[_Pair]:
        pairs: list[_Pair] = []
        for sample, record in enumerate(records):
            true = captions_of(record, self.caption)
            if not true:
                raise DataError(f"sample {record['key']} has no {self.caption!r}; set `caption`")
            pairs += [_Pair(sample, true[0], false) for false in captions_of(record, self.negatives[kind])]
        if not pairs:
            raise DataError(
                f"negatives.{kind}: no sample of {self.shards} has anything in {self.negatives[kind]!r}"
            )
        return pairs


def choice_accuracy(true: Float[Tensor, " n"], false: Float[Tensor, " n"]) -> float:
    """Share of pairs whose true caption scores higher; a tie counts one half, a nan score loses."""
    margin = true.double() - false.double()
    return ((margin > TIE).double() + 0.5 * (margin.abs() <= TIE)).mean().item()


def _examples(pairs: list[_Pair], true: Tensor, false: Tensor) -> dict[str, list[dict[str, Any]]]:
    won = true - false > TIE
    rows = {"won": won.nonzero().flatten().tolist(), "lost": (~won).nonzero().flatten().tolist()}
    return {
        outcome: [
            {**asdict(pairs[row]), "true_score": true[row].item(), "false_score": false[row].item()}
            for row in (found[position] for position in spread(len(found), wanted=NUM_EXAMPLES))
        ]
        for outcome, found in rows.items()
    }
