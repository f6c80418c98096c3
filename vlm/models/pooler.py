"""Attentional pooling: learned queries look at an image's tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm.models.spec import PoolerSpec
from vlm.models.transformer import CrossAttention


class Queries(nn.Module):
    """So many mixtures of a memory's tokens."""

    def __init__(self, count: int, *, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(count, width))
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(memory_width)
        self.attn = CrossAttention(width=width, memory_width=memory_width, heads=heads)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, memory: Float[Tensor, "b n e"]) -> Float[Tensor, "b q d"]:
        query = self.ln_q(self.query).expand(len(memory), -1, -1)
        return self.ln_post(self.attn(query, self.ln_k(memory)))  # type: ignore[no-any-return]

    def of_each(self, memory: Float[Tensor, "b n e"]) -> Float[Tensor, "b n d"]:
        """What any query gives for a memory of one token, for each of these tokens."""
        b, n, e = memory.shape
        query = self.ln_q(self.query[:1]).expand(b * n, -1, -1)
        mixed = self.attn(query, self.ln_k(memory).reshape(b * n, 1, e))
        return self.ln_post(mixed).view(b, n, -1)  # type: ignore[no-any-return]


class ImagePooler(nn.Module):
    """An image's vector, and the tokens that captions are read from.

    Source: arXiv:2205.01917, section 3.2; `shared` is that of open_clip.
    """

    def __init__(self, spec: PoolerSpec, *, width: int, memory_width: int) -> None:
        super().__init__()
        self.kind = spec.kind
        self.captions = Queries(spec.queries, width=width, memory_width=memory_width, heads=spec.heads)
        self.contrast = None
        if spec.kind != "shared":
            below = width if spec.kind == "cascade" else memory_width
            self.contrast = Queries(1, width=width, memory_width=below, heads=spec.heads)

    def forward(self, tokens: Float[Tensor, "b n e"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b q d"]]:
        """The vector, and what the other queries give."""
        if self.kind == "parallel":
            return self._contrast(tokens), self.captions(tokens)
        mixed = self.captions(tokens)
        if self.kind == "cascade":
            return self._contrast(mixed), mixed
        return mixed[:, 0], mixed[:, 1:]

    def each_pooled(self, patches: Float[Tensor, "b n e"]) -> Float[Tensor, "b n d"]:
        """The vector of an image that would be this patch alone."""
        if self.kind == "shared":
            return self.captions.of_each(patches)
        assert self.contrast is not None
        if self.kind == "parallel":
            return self.contrast.of_each(patches)
        return self.contrast.of_each(self.captions.of_each(patches))

    def _contrast(self, tokens: Tensor) -> Tensor:
        assert self.contrast is not None
        return self.contrast(tokens)[:, 0]  # type: ignore[no-any-return]
