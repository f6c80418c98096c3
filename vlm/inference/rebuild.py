"""A model with an image decoder, as one that rebuilds hidden patches from a text and the others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from vlm.errors import ConfigError
from vlm.inference.load import Loaded
from vlm.losses import brightness_and_contrast, caption_scores, divide, patch_error, words_of
from vlm.models import unpatchify
from vlm.types import TextStates, rows_at

Picture = UInt8[ndarray, "h w 3"]


class Pictures(NamedTuple):
    """An image as the model sees it, with patches in grey, and with these rebuilt under each text."""

    original: Picture
    masked: Picture
    rebuilt: Picture
    under_other: Picture


class Rebuilt(NamedTuple):
    """Mean squared error over hidden patches, as in training."""

    error: float
    error_under_other: float
    pictures: Pictures | None


class Rebuilder:
    """Hides the patches that a text is about most, and rebuilds them.

    Args:
        share: of the patches. normalise: as `objective.normalise_patches`.

    Raises:
        ConfigError: the model has no image decoder.
    """

    def __init__(self, loaded: Loaded, *, share: float, normalise: bool) -> None:
        if loaded.model.spec.image_decoder is None or loaded.tokenizer is None:
            raise ConfigError(
                "the model has no image decoder (model.image_decoder=null) and cannot rebuild images; take "
                "one that was trained with objective=sycoca"
            )
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._share, self._normalise = share, normalise

    @torch.no_grad()
    def __call__(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        texts: Sequence[str],
        others: Sequence[str],
        *,
        shown: Sequence[bool],
    ) -> list[Rebuilt]:
        """Rebuild each image under its text and under another, with the same patches hidden.

        Args:
            shown: whether to make pictures of it.
        """
        model = self._model
        ids = (self._tokenizer(given).to(images.device) for given in (texts, others))
        own, other = map(model.text_states, ids)
        scores = caption_scores(model.image_states(images).each, own.each, words=words_of(own.mask))
        visible, hidden = divide(scores, self._share, by="attentive")
        if not hidden.shape[1]:
            raise ConfigError(f"masked_share={self._share} of {scores.shape[1]} patches hides none; raise it")
        tokens = model.visible_patches(images, visible)
        pixels = model.patch_pixels(images)
        target = rows_at(pixels, hidden)

        def predicted(text: TextStates) -> Float[Tensor, "b h p"]:
            return model.reconstruct(tokens, visible, hidden, text).float()

        pair = predicted(own), predicted(other)
        errors = [patch_error(guess, target, normalise=self._normalise).tolist() for guess in pair]
        guesses = [self._with_contrast_of(target, guess) for guess in pair]
        made = [
            self._pictures(pixels[row], hidden[row], [guess[row] for guess in guesses]) if show else None
            for row, show in enumerate(shown)
        ]
        return [Rebuilt(*row) for row in zip(*errors, made, strict=True)]

    def _with_contrast_of(self, target: Tensor, guess: Tensor) -> Tensor:
        """What was rebuilt up to brightness and contrast, with those of the hidden patch itself."""
        if not self._normalise:
            return guess
        brightness, contrast = brightness_and_contrast(target)
        return guess * contrast + brightness

    def _pictures(self, pixels: Tensor, hidden: Tensor, guesses: Sequence[Tensor]) -> Pictures:
        found = [pixels]
        for patches in (torch.zeros_like(guesses[0]), *guesses):
            changed = pixels.clone()
            changed[hidden] = patches.to(pixels.dtype)
            found.append(changed)
        return Pictures(*map(self._picture, found))

    def _picture(self, pixels: Tensor) -> Picture:
        tower = self._model.image
        image = unpatchify(pixels[None], tower.patches.grid)[0] * tower.std + tower.mean
        found: Picture = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(found)
