"""Generated captions beside the same without a cache, and beside a search of all captions."""

import itertools
from typing import Any

import pytest
import torch
from generative import model_of
from torch import Tensor

from vlm.inference.decoding import Decoding
from vlm.inference.generate import generate
from vlm.models import DualEncoder
from vlm.types import ImageStates

BOT, EOT, LENGTH = 1, 2, 12


def decoding(strategy: str = "greedy", **changes: Any) -> Decoding:
    values = {"beams": 3, "top_p": 0.9, "temperature": 1.5, "max_length": None, "seed": 0}
    return Decoding(strategy=strategy, **{**values, **changes})


def memory_of(model: DualEncoder) -> Tensor:
    """Tokens that differ more than those of images of noise would."""
    assert model.text_decoder is not None
    width = model.text_decoder.get_submodule("blocks.0.cross.attn.kv_proj").in_features
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 5, width, generator=generator, dtype=torch.float64)  # type: ignore[call-overload]


def written(
    model: DualEncoder,
    how: Decoding,
    rows: list[int] | None = None,
    *,
    length: int = LENGTH,
    end: int = EOT,
) -> Tensor:
    memory, numbers = memory_of(model), list(range(8)) if rows is None else rows
    return generate(model, memory[numbers], how, bot_id=BOT, eot_id=end, max_length=length, numbers=numbers)


def logits_after(model: DualEncoder, text: Tensor, memory: Tensor) -> Tensor:
    """Of the token after each, without a cache."""
    with torch.no_grad():
        states = model.text_states(text)
        image = ImageStates(memory, memory, memory, memory, memory)
        return model.caption_logits(image, states)


def lively(**changes: Any) -> DualEncoder:
    """A model whose captions differ and end at different places."""
    model = model_of(**changes)
    generator = torch.Generator().manual_seed(1)
    assert model.text_decoder is not None
    for name, parameter in model.named_parameters():
        if "decoder" in name or name.startswith("text."):
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.5 * noise
    return model


@pytest.mark.parametrize("changes", [{}, {"pooler": "shared", "pooling": "class"}])
def test_the_cache_changes_no_token(changes: dict[str, Any]) -> None:
    model = lively(**changes)
    end = int(written(model, decoding())[0, 5])  # some captions end there, others sooner or later
    found = written(model, decoding(), end=end)
    assert len({tuple(row) for row in found.tolist()}) > 2
    assert len({row.index(end) if end in row else LENGTH for row in found.tolist()}) > 1
    memory = memory_of(model)
    text = torch.full((8, 1), BOT)
    while text.shape[1] < found.shape[1]:
        token = logits_after(model, text, memory)[:, -1].argmax(1)
        ended = (text == end).any(1)
        text = torch.cat([text, torch.where(ended, end, token)[:, None]], dim=1)
    assert torch.equal(found, text)


def test_one_beam_is_greedy_and_many_find_the_best_of_all_captions() -> None:
    model = lively()
    assert torch.equal(written(model, decoding("beam", beams=1)), written(model, decoding()))
    length = 3
    found = written(model, decoding("beam", beams=60), rows=[0, 1], length=length)
    for row, memory in enumerate(memory_of(model)[:2]):
        assert caption(found[row]) == best_caption(model, memory[None], length)


def caption(ids: Tensor) -> list[int]:
    row = ids.tolist()
    return row[: row.index(EOT) + 1] if EOT in row else row


def best_caption(model: DualEncoder, memory: Tensor, length: int) -> list[int]:
    """Of all that there are."""
    words = range(40)
    best, score = [], -torch.inf
    for count in range(1, length):
        ends = [EOT] if count < length - 1 else words
        for middle in itertools.product([w for w in words if w != EOT], repeat=count - 1):
            texts = torch.tensor([[BOT, *middle, end] for end in ends])
            share = logits_after(model, texts[:1, :-1], memory).log_softmax(2)[0]
            before = sum(float(share[place, word]) for place, word in enumerate(middle))
            for text in texts.tolist():
                mean = (before + float(share[count - 1, text[-1]])) / count
                if mean > score:
                    best, score = text, mean
    return best


def test_what_is_drawn_depends_on_image_and_seed_alone() -> None:
    model = lively()
    together = written(model, decoding("nucleus"))
    apart = written(model, decoding("nucleus"), rows=[5, 2])
    assert caption(apart[0]) == caption(together[5])
    assert caption(apart[1]) == caption(together[2])
    assert not torch.equal(together, written(model, decoding("nucleus", seed=1)))


def test_a_small_nucleus_is_greedy_and_a_whole_one_draws_as_the_model_says() -> None:
    model = lively()
    assert torch.equal(written(model, decoding("nucleus", top_p=1e-9)), written(model, decoding()))
    memory = memory_of(model)[:1].expand(4000, -1, -1)
    how = decoding("nucleus", top_p=1.0, temperature=2.0)
    drawn = generate(model, memory, how, bot_id=BOT, eot_id=EOT, max_length=2, numbers=range(4000))
    share = torch.bincount(drawn[:, 1], minlength=40) / 4000
    expected = (logits_after(model, torch.tensor([[BOT]]), memory[:1])[0, 0] / 2).softmax(0)
    torch.testing.assert_close(share.double(), expected, rtol=0, atol=0.03)


def test_a_caption_is_as_long_as_asked_at_most() -> None:
    assert written(lively(), decoding(max_length=3)).shape[1] == 3
