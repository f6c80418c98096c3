"""Captions that a model writes, against captions that people wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, get_args

import numpy as np

from vlm.distributed import gather_objects
from vlm.errors import ConfigError, DataError
from vlm.evaluation.caption_metrics import Words, bleu, cider_d, rouge_l
from vlm.evaluation.caption_sources import CaptionSource, Likelihood
from vlm.evaluation.caption_words import Language, words_of
from vlm.evaluation.evaluator import Result
from vlm.evaluation.meteor import NoMeteorError, meteor
from vlm.evaluation.outcomes import Outcomes, outcomes
from vlm.inference import Decoding, Embedder
from vlm.schema import from_mapping


@dataclass(frozen=True, slots=True)
class _Compared:
    """A caption that was written, and what people wrote; both as texts and as words."""

    position: int
    caption: str
    references: list[str]
    words: Words
    wanted: list[Words]


class Captioning:
    """How near the captions of a model come to those of people.

    BLEU, ROUGE-L, CIDEr-D and METEOR as the evaluation server of COCO has them (arXiv:1504.00325), the last
    for English where Java and pycocoevalcap are installed; `exact_match`, the share of captions with the very
    words of a reference; `perplexity`, exp of the mean negative log-likelihood of a reference's token; and
    `mean_length` in words.

    Args:
        captions: the pictures and their references.
        decoding: the fields of `Decoding`.
        language: "en", or "zh", of which every character is a word.
        num_examples: pictures that a report shows of the best captions by CIDEr-D, and of the worst.

    Raises:
        ConfigError: a value is out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text", "text_decoder"})

    def __init__(
        self, captions: CaptionSource, *, decoding: Mapping[str, Any], language: str, num_examples: int
    ) -> None:
        if language not in get_args(Language):
            raise ConfigError(f"language={language!r} is not one of {', '.join(get_args(Language))}")
        if num_examples < 0:
            raise ConfigError(f"num_examples={num_examples} must be at least 0")
        self.source = captions
        self.decoding = from_mapping(Decoding, decoding, key="decoding")
        self.language: Language = "zh" if language == "zh" else "en"
        self.num_examples = num_examples

    def check(self) -> None:
        self.source.read()

    def __call__(self, embedder: Embedder) -> Result:
        references = self.source.read()
        written = self.source.captions(embedder, self.decoding)
        compared = [
            _Compared(position, caption, own, self._words(caption), [self._words(text) for text in own])
            for position, (caption, own) in enumerate(zip(written, references.captions, strict=True))
            if caption is not None
        ]
        if not compared:
            raise DataError(f"none of the {len(written)} pictures to be captioned can be read")
        found, wanted = [row.words for row in compared], [row.wanted for row in compared]
        cider = cider_d(found, wanted)
        metrics = _scores(found, wanted, cider)
        notes: dict[str, int | float | str] = {
            "num_references": sum(map(len, wanted)),
            "mean_reference_length": fmean(len(words) for own in wanted for words in own),
            "num_missing": references.num_missing + len(written) - len(compared),
            "num_left_out": references.num_left_out,
        }
        measured = self._meteor(found, wanted, embedder)
        if isinstance(measured, str):
            notes["meteor"] = measured
        else:
            metrics["METEOR"] = measured
        readable = [
            own if caption is not None else []
            for caption, own in zip(written, references.captions, strict=True)
        ]
        likelihood = self.source.likelihood(embedder, replace(references, captions=readable))
        if likelihood is not None:
            metrics["perplexity"] = _perplexity(likelihood)
        examples = _extremes(compared, cider, wanted=self.num_examples)
        shown = sorted({example["position"] for part in examples.values() for example in part})
        return Result(
            task="captioning",
            metrics=metrics,
            chance={},
            num_samples=len(compared),
            details={"examples": examples, "pictures": shown, "shards": self.source.pictures()},
            notes=notes,
            outcomes=(_outcomes(compared, cider),),
        )

    def _words(self, caption: str) -> Words:
        return words_of(caption, language=self.language)

    def _meteor(
        self, found: Sequence[Words], wanted: Sequence[Sequence[Words]], embedder: Embedder
    ) -> float | str:
        """The score, or why there is none; one rank measures it for all."""
        own: float | str = "METEOR is left out: it has no Chinese"
        if self.language == "en" and embedder.topology.is_main:
            try:
                own = meteor(found, wanted)
            except NoMeteorError as error:
                own = str(error)
        measured: float | str = gather_objects(own)[0]
        return measured


def _scores(
    found: Sequence[Words], wanted: Sequence[Sequence[Words]], cider: Sequence[float]
) -> dict[str, float]:
    """What is computed from the words alone."""
    return {
        **{f"Bleu_{order}": score for order, score in enumerate(bleu(found, wanted), start=1)},
        "ROUGE_L": fmean(map(rouge_l, found, wanted)),
        "CIDEr": fmean(cider),
        "exact_match": fmean(words in own for words, own in zip(found, wanted, strict=True)),
        "mean_length": fmean(map(len, found)),
    }


def _outcomes(compared: Sequence[_Compared], cider: Sequence[float]) -> Outcomes:
    return outcomes(
        "picture",
        {
            "ROUGE_L": [rouge_l(row.words, row.wanted) for row in compared],
            "CIDEr": cider,
            "exact_match": [row.words in row.wanted for row in compared],
        },
        picture=[row.position for row in compared],
        answer=[row.caption for row in compared],
    )


def _perplexity(likelihood: Likelihood) -> float:
    nats, tokens = likelihood
    return float(np.exp(nats.sum() / tokens.sum()))


def _extremes(
    compared: Sequence[_Compared], cider: Sequence[float], *, wanted: int
) -> dict[str, list[dict[str, Any]]]:
    """The captions with the highest and, of the others, the lowest scores."""
    order = sorted(range(len(compared)), key=lambda row: -cider[row])
    others = order[wanted:]
    chosen = {"best": order[:wanted], "worst": others[max(0, len(others) - wanted) :][::-1]}
    return {
        kind: [
            {
                "position": compared[row].position,
                "caption": compared[row].caption,
                "references": compared[row].references,
                "score": cider[row],
            }
            for row in rows
        ]
        for kind, rows in chosen.items()
    }
