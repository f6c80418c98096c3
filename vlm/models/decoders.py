"""Decoders: from images to words, and from words and a part of an image to the rest of it."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vlm.models.cache import Cache
from vlm.models.patches import Patches
from vlm.models.spec import ImageDecoderSpec, TextDecoderSpec
from vlm.models.transformer import DecoderBlock, activation_of, initialise


class TextDecoder(nn.Module):
    """Logits of the next token after each, from the states of a text tower and an image's tokens.

    Source: arXiv:2205.01917, section 3.2.
    """

    def __init__(self, spec: TextDecoderSpec, *, width: int, memory_width: int, vocab_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(
                width=width,
                memory_width=memory_width,
                heads=spec.heads,
                activation=activation_of(spec.activation),
                causal=True,
            )
            for _ in range(spec.layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.vocabulary = nn.Linear(width, vocab_size, bias=False)
        initialise(self.blocks, width=width, branches=4 * spec.layers)
        nn.init.normal_(self.vocabulary.weight, std=width**-0.5)

    def forward(
        self,
        states: Float[Tensor, "b l d"],
        image: Float[Tensor, "b m e"],
        *,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b l v"]:
        for block in self.blocks:
            states = block(states, image, cache=cache)
        return self.vocabulary(self.ln_final(states))  # type: ignore[no-any-return]


class ImageDecoder(nn.Module):
    """Pixels of hidden patches, from the tokens of visible ones and the states of a text.

    Every place has a learned position; a hidden one begins as a learned token.

    Source: arXiv:2401.02137, section 3.3; visible tokens among learned ones as in arXiv:2111.06377.
    """

    def __init__(self, spec: ImageDecoderSpec, *, patches: Patches, text_width: int) -> None:
        super().__init__()
        self.visible = nn.Linear(patches.width, spec.width)
        self.hidden = nn.Parameter(torch.empty(spec.width))
        self.positional_embedding = nn.Parameter(torch.empty(patches.count, spec.width))
        self.blocks = nn.ModuleList(
            DecoderBlock(
                width=spec.width,
                memory_width=text_width,
                heads=spec.heads,
                activation=activation_of(spec.activation),
                causal=False,
            )
            for _ in range(spec.layers)
        )
        self.ln_final = nn.LayerNorm(spec.width)
        self.pixels = nn.Linear(spec.width, 3 * patches.size**2)
        for parameter in (self.hidden, self.positional_embedding):
            nn.init.normal_(parameter, std=0.02)
        initialise(self.blocks, width=spec.width, branches=4 * spec.layers)

    def forward(
        self,
        visible: Float[Tensor, "b k e"],
        places: Int64[Tensor, "b k"],
        hidden_places: Int64[Tensor, "b h"],
        states: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "b h p"]:
        """Pixels of the hidden patches, as `patchify` has them.

        Args:
            visible: tokens of the patches at `places`.
            states: of the text, where `mask` is true.
        """
        order = torch.cat([places, hidden_places], dim=1)
        tokens = self.visible(visible)
        hidden = self.hidden.to(tokens.dtype).expand(*hidden_places.shape, -1)
        # Attention does not mind the order of its tokens, which bring their positions along.
        x = torch.cat([tokens, hidden], dim=1) + self.positional_embedding[order]
        for block in self.blocks:
            x = block(x, states, mask=mask)
        return self.pixels(self.ln_final(x[:, places.shape[1] :]))  # type: ignore[no-any-return]


def patchify(image: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b n p"]:
    """The pixels of each patch, patches row by row, p = 3 * size * size."""
    b, _, h, w = image.shape
    parts = image.reshape(b, 3, h // size, size, w // size, size)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 3 * size * size)


def unpatchify(pixels: Float[Tensor, "b n p"], grid: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """The images whose patches these are."""
    b, (rows, columns) = len(pixels), grid
    size = round((pixels.shape[2] / 3) ** 0.5)
    parts = pixels.reshape(b, rows, columns, 3, size, size)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(b, 3, rows * size, columns * size)
