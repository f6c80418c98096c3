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

    def forward(self, memory: Float[Tensor, "b n e"], *, each: bool = False) -> Float[Tensor, "b m d"]:
        """The mixtures; with `each`, of every token what any query makes of a memory of it alone."""
        b, n, e = memory.shape
        keys, query = self.ln_k(memory), self.ln_q(self.query)
        if not each:
            return self.ln_post(self.attn(query.expand(b, -1, -1), keys))  # type: ignore[no-any-return]
        mixed = self.attn(query[:1].expand(b * n, -1, -1), keys.reshape(b * n, 1, e))
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
            return self.captions(patches, each=True)  # type: ignore[no-any-return]
        assert self.contrast is not None
        if self.kind == "parallel":
            return self.contrast(patches, each=True)  # type: ignore[no-any-return]
        return self.contrast(self.captions(patches, each=True), each=True)  # type: ignore[no-any-return]

    def _contrast(self, tokens: Tensor) -> Tensor:
        assert self.contrast is not None
        return self.contrast(tokens)[:, 0]  # type: ignore[no-any-return]
