"""Captions, token by token: greedy, by beam search, or drawn from the nucleus."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vlm.inference.decoding import Decoding
from vlm.models import Cache, DualEncoder


@torch.no_grad()
def generate(
    model: DualEncoder,
    memory: Float[Tensor, "b m f"],
    decoding: Decoding,
    *,
    bot_id: int,
    eot_id: int,
    max_length: int,
    numbers: Sequence[int],
    finished: Callable[[bool], bool] = bool,
) -> Int64[Tensor, "b l"]:
    """Captions that begin with `bot_id` and end with `eot_id`, or were cut at `max_length`.

    What is written for an image does not depend on the others of the batch.

    Args:
        memory: of `model.image_states`.
        max_length: tokens of a caption with both marks, at most the context length.
        numbers: of the images; what is drawn for one depends on its number and the seed.
        finished: whether all are done, given whether these are: ranks that share a model's weights stop
            together.
    """
    if decoding.max_length is not None:
        max_length = min(max_length, decoding.max_length)
    start = torch.full((len(memory), 1), bot_id, device=memory.device)
    if decoding.strategy == "beam":
        return _beams(
            model, memory, start, decoding.beams, eot_id=eot_id, max_length=max_length, finished=finished
        )
    drawn = _drawn(decoding.seed, numbers, max_length).to(memory.device)
    cache, text, done = Cache(max_length), start, torch.zeros_like(start[:, 0], dtype=torch.bool)
    while text.shape[1] < max_length and not finished(bool(done.all())):
        logits = model.next_logits(text[:, cache.length :], memory, cache).float()
        if decoding.strategy == "greedy":
            token = logits.argmax(1)
        else:
            token = _from_nucleus(logits, drawn[:, text.shape[1]], decoding)
        token = torch.where(done, eot_id, token)
        text, done = torch.cat([text, token[:, None]], dim=1), done | (token == eot_id)
    return text


def _drawn(seed: int, numbers: Sequence[int], count: int) -> Float[Tensor, "b l"]:
    """Uniform numbers of each image, the same in every batch and on every rank."""
    rows = [np.random.default_rng((seed, number)).random(count, dtype=np.float32) for number in numbers]
    return torch.from_numpy(np.stack(rows))


def _from_nucleus(
    logits: Float[Tensor, "b v"], drawn: Float[Tensor, " b"], decoding: Decoding
) -> Int64[Tensor, " b"]:
    """One of the likeliest tokens that together have the probability `top_p`.

    Source: arXiv:1904.09751, section 3.1.
    """
    share, token = (logits / decoding.temperature).softmax(1).sort(dim=1, descending=True)
    before = share.cumsum(1) - share
    there = before < decoding.top_p  # the likeliest always is
    share = share.where(there, 0)
    reached = share.cumsum(1)
    place = torch.searchsorted(reached, (drawn * reached[:, -1])[:, None], right=True)
    return token.gather(1, place.minimum(there.sum(1, keepdim=True) - 1))[:, 0]


def _beams(
    model: DualEncoder,
    memory: Tensor,
    text: Tensor,
    beams: int,
    *,
    eot_id: int,
    max_length: int,
    finished: Callable[[bool], bool],
) -> Tensor:
    """The best of `beams` captions by the mean log-probability of their tokens.

    A caption that has ended stays among them as it is.
    """
    rows, device = len(memory), memory.device
    first = torch.arange(rows, device=device).repeat_interleave(beams)
    memory, text, cache = memory[first], text[first], Cache(max_length)
    # At first the beams of an image are one caption.
    total = torch.full((rows, beams), -torch.inf, device=device)
    total[:, 0] = 0
    length = torch.zeros_like(total)
    done = torch.zeros_like(total, dtype=torch.bool)
    while text.shape[1] < max_length and not finished(bool(done.all())):
        logits = model.next_logits(text[:, cache.length :], memory, cache).float()
        cost = logits.log_softmax(1).view(rows, beams, -1)
        vocabulary = cost.shape[2]
        stay = torch.full_like(cost[:1, :1], -torch.inf)
        stay[..., eot_id] = 0
        cost = torch.where(done[..., None], stay, cost)
        longer = length + (~done).to(length.dtype)
        mean = (total[..., None] + cost) / longer.clamp(min=1)[..., None]
        _, best = mean.flatten(1).topk(beams, dim=1)
        beam, token = best // vocabulary, best % vocabulary
        total = total.gather(1, beam) + cost.flatten(1).gather(1, best)
        length, done = longer.gather(1, beam), done.gather(1, beam) | (token == eot_id)
        source = (torch.arange(rows, device=device)[:, None] * beams + beam).flatten()
        cache.select(source)
        text = torch.cat([text[source], token.view(-1, 1)], dim=1)
    best = (total / length.clamp(min=1)).argmax(1)
    return text.view(rows, beams, -1)[torch.arange(rows, device=device), best]
