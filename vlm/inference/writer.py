"""A model with a text decoder, as one that writes captions and weighs those of others."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vlm.errors import ConfigError
from vlm.inference.decoding import Decoding
from vlm.inference.generate import generate
from vlm.inference.load import Loaded
from vlm.losses import caption_likelihood
from vlm.types import ImageStates

Images = UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]


class Writer:
    """Captions by a model, which is in evaluation mode.

    Raises:
        ConfigError: it has no text decoder, or its tokenizer no token that begins a text.
    """

    def __init__(self, loaded: Loaded) -> None:
        model, tokenizer = loaded.model, loaded.tokenizer
        if model.spec.text_decoder is None or tokenizer is None:
            raise ConfigError(
                "the model has no text decoder (model.text_decoder=null) and cannot write captions; take one "
                "that was trained with objective=coca or objective=sycoca"
            )
        if tokenizer.bot_id is None:
            raise ConfigError("the tokenizer has no token that begins a text, to begin a caption with")
        self._model, self._tokenizer, self._bot_id = model, tokenizer, tokenizer.bot_id

    def __call__(
        self,
        images: Images,
        decoding: Decoding,
        *,
        numbers: Sequence[int],
        finished: Callable[[bool], bool] = bool,
    ) -> list[str]:
        """A caption for each image; `numbers` and `finished` are those of `generate`."""
        ids = generate(
            self._model,
            self._model.image_states(images).memory,
            decoding,
            bot_id=self._bot_id,
            eot_id=self._tokenizer.eot_id,
            max_length=self._model.spec.text_tower.context_length,
            numbers=numbers,
            finished=finished,
        )
        return [self._tokenizer.decode(row[1:]).strip() for row in ids.tolist()]

    @torch.no_grad()
    def costs(
        self, texts: Sequence[Sequence[str]], images: Images, *, rounds: int
    ) -> list[list[tuple[float, int]]]:
        """Nats and tokens of each text of each image.

        Args:
            rounds: texts that an image may have; ranks that share a model's weights go so often through it.
        """
        states = self._model.image_states(images)
        found: list[list[tuple[float, int]]] = [[] for _ in texts]
        for number in range(rounds):
            rows = [row for row, own in enumerate(texts) if number < len(own)]
            ids = self._tokenizer([texts[row][number] for row in rows] or [""]).to(images.device)
            text = self._model.text_states(ids)
            chosen = ImageStates(*(part[rows or [0]] for part in states))
            cost, tokens = caption_likelihood(self._model.caption_logits(chosen, text), ids, mask=text.mask)
            for row, pair in zip(rows, zip(cost.tolist(), tokens.tolist(), strict=True), strict=False):
                found[row].append(pair)
        return found
