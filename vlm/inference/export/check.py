"""Whether an export gives the vectors of its source."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.errors import OutputError
from vlm.inference.export.opened import Opened
from vlm.inference.export.source import Source

BATCHES = (1, 3, 8)
"""Images and rows of ids that go through at once."""

_SENTENCES = (
    "a photo of a cat",
    "two red circles beside a blue square",
    "",
    "一只猫的照片",
    "on the left of the green triangle there is a house, " * 20,
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The largest differences between coordinates of unit vectors.

    Args:
        texts: None where the model reads none.
        tokenized: texts that both tokenizers gave the same ids for; None where there was one tokenizer alone.
    """

    library: str
    tolerance: float
    images: float
    texts: float | None
    tokenized: int | None

    def __str__(self) -> str:
        texts = "" if self.texts is None else f", texts {self.texts:.2g}"
        allowed = f"at most {self.tolerance:g} allowed"
        return f"images {self.images:.2g}{texts} from the source, {allowed}; loaded with {self.library}"

    def to_mapping(self) -> dict[str, Any]:
        """For json."""
        return {
            "against": self.library,
            "tolerance": self.tolerance,
            "images": self.images,
            "texts": self.texts,
            "tokenized_alike": self.tokenized,
            "batches": list(BATCHES),
        }


@torch.no_grad()
def compare(source: Source, opened: Opened, *, tolerance: float) -> Agreement:
    """Random images, random and tokenized texts through the source and through what was exported.

    Raises:
        OutputError: a difference beyond the tolerance, or another tokenization.
    """
    generator = torch.Generator().manual_seed(0)
    side = source.spec.image.image_size
    images = [
        torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        for count in BATCHES
    ]
    found = max(_difference(source.vectors.encode_image(rows), opened.image(rows)) for rows in images)
    texts, tokenized = None, None
    if opened.text is not None:
        texts = max(_text_difference(source, opened, rows) for rows in _rows(source, generator))
        tokenized = None if opened.tokens is None else _tokenized_alike(source, opened)
    for what, value in (("images", found), ("texts", texts)):
        if value is not None and value > tolerance:
            raise OutputError(
                f"{opened.library} gives other vectors of {what} for what was exported: they differ by "
                f"{value:.2g}, more than {tolerance:g}; nothing is left of it. Look for weights that are not "
                "finite, and report it if there are none"
            )
    return Agreement(
        library=opened.library, tolerance=tolerance, images=found, texts=texts, tokenized=tokenized
    )


def _rows(source: Source, generator: torch.Generator) -> list[list[Tensor]]:
    """Ids of sentences, and batches of random ids of different lengths, each with its end of text."""
    tokenizer, context = source.tokenizer, source.spec.text_tower.context_length
    batches = [[torch.tensor(tokenizer.encode(text)) for text in _SENTENCES]]
    for count in BATCHES:
        lengths = torch.randint(0, context, (count,), generator=generator).tolist()
        batches.append([_random_row(source, length, generator) for length in lengths])
    return batches


def _random_row(source: Source, length: int, generator: torch.Generator) -> Tensor:
    end = source.tokenizer.eot_id
    row = torch.randint(0, source.tokenizer.vocab_size, (length,), generator=generator)
    return torch.cat([row[row != end], torch.tensor([end])])


def _text_difference(source: Source, opened: Opened, rows: list[Tensor]) -> float:
    assert opened.text is not None
    own = pad_sequence(rows, batch_first=True)
    return _difference(source.vectors.encode_text(own), opened.text(_as_opened(source, opened, rows)))


def _as_opened(source: Source, opened: Opened, rows: list[Tensor]) -> Int64[Tensor, "b l"]:
    """Rows with the end of text and the padding that the export has, as long as the context."""
    end, context = source.tokenizer.eot_id, source.spec.text_tower.context_length
    filled = torch.full((len(rows), context), opened.padding)
    for target, row in zip(filled, rows, strict=True):
        target[: len(row)] = row.where(row != end, opened.eot_id)
    return filled


def _tokenized_alike(source: Source, opened: Opened) -> int:
    assert opened.tokens is not None
    for text, ids in zip(_SENTENCES, opened.tokens(_SENTENCES), strict=True):
        own = source.tokenizer.encode(text)
        if list(ids) != [*own[:-1], opened.eot_id]:
            raise OutputError(
                f"{opened.library} reads {text[:20]!r} as the ids {list(ids)[:12]}, the tokenizer of the run "
                f"as {own[:12]}; nothing is left of the export, as its texts would have other vectors"
            )
    return len(_SENTENCES)


def _difference(own: Tensor, other: Tensor) -> float:
    """Infinite where a coordinate is not finite, as `max` of Python loses what is not a number."""
    found = float((own - other).abs().max().item())
    return found if math.isfinite(found) else math.inf
