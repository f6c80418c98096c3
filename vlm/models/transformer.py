"""The parts that the project's own transformers are made of."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.models.cache import Cache
from vlm.models.spec import Activation


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation of the first CLIP weights, where later ones have GELU."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * torch.sigmoid(1.702 * x)


def activation_of(name: Activation) -> nn.Module:
    """The activation that a description names."""
    match name:
        case "quick_gelu":
            return QuickGELU()
        case "gelu_tanh":
            return nn.GELU(approximate="tanh")
        case "gelu":
            return nn.GELU()


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        causal: whether a position sees itself and those before it alone.
    """

    def __init__(self, *, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        *,
        mask: Bool[Tensor, "b l l"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Mix positions.

        Args:
            mask: what each position sees, in place of the rule.
            cache: of what stands before `x`; a first part may be long, each further one is one token.
        """
        b, l, d = x.shape  # noqa: E741
        q, k, v = self.in_proj(x).view(b, l, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        # No mask for padding: it stands behind the end of text, which causal attention never looks past.
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask.unsqueeze(1),
            is_causal=self.causal and mask is None and (cache is None or k.shape[2] == l),
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(b, l, d))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another, the memory."""

    def __init__(self, *, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.kv_proj = nn.Linear(memory_width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        memory: Float[Tensor, "b m e"],
        *,
        norm: nn.Module | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Mix what stands in the memory into each position.

        Args:
            norm: of the memory; where it stays the same, its norm is not computed again either.
            mask: which places of the memory count; None: all.
            cache: keeps what is computed of a memory that stays the same.
        """
        b, l, d = x.shape  # noqa: E741
        q = self.q_proj(x).view(b, l, self.heads, d // self.heads).transpose(1, 2)
        if cache is None:
            k, v = self._read(memory, norm)
        else:
            k, v = cache.remember(self, lambda: self._read(memory, norm))
        there = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, l, d))  # type: ignore[no-any-return]

    def _read(self, memory: Tensor, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
        if norm is not None:
            memory = norm(memory)
        b, m, _ = memory.shape
        k, v = self.kv_proj(memory).view(b, m, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v


class Mlp(nn.Module):
    """Two linear layers, four times as wide in between."""

    def __init__(self, *, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = activation
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.c_proj(self.activation(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention and MLP, each on the normalised input and added to it."""

    def __init__(self, *, width: int, heads: int, activation: nn.Module, causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width=width, heads=heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width=width, activation=activation)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        *,
        mask: Bool[Tensor, "b l l"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b l d"]:
        x = x + self.attn(self.ln_1(x), mask=mask, cache=cache)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Cross-attention and MLP, each on the normalised input and added to it."""

    def __init__(self, *, width: int, memory_width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.ln_1_kv = nn.LayerNorm(memory_width)
        self.attn = CrossAttention(width=width, memory_width=memory_width, heads=heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width=width, activation=activation)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        memory: Float[Tensor, "b m e"],
        *,
        mask: Bool[Tensor, "b m"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b l d"]:
        x = x + self.attn(self.ln_1(x), memory, norm=self.ln_1_kv, mask=mask, cache=cache)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """A block over the sequence itself, then one that looks at the memory."""

    def __init__(
        self, *, width: int, memory_width: int, heads: int, activation: nn.Module, causal: bool
    ) -> None:
        super().__init__()
        self.own = Block(width=width, heads=heads, activation=activation, causal=causal)
        self.cross = CrossBlock(width=width, memory_width=memory_width, heads=heads, activation=activation)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        memory: Float[Tensor, "b m e"],
        *,
        mask: Bool[Tensor, "b m"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Args are those of `CrossBlock`."""
        return self.cross(self.own(x, cache=cache), memory, mask=mask, cache=cache)  # type: ignore[no-any-return]


def initialise(stack: nn.Module, *, width: int, branches: int) -> None:
    """As CLIP: residual branches shrink with their number, so that their sum keeps its size.

    Args:
        branches: that are added up one after the other.
    """
    residual_std = (branches * width) ** -0.5
    for module in stack.modules():
        match module:
            case SelfAttention():
                _normal(module.in_proj, std=width**-0.5)
                _normal(module.out_proj, std=residual_std)
            case CrossAttention():
                _normal(module.q_proj, std=width**-0.5)
                _normal(module.kv_proj, std=module.kv_proj.in_features**-0.5)
                _normal(module.out_proj, std=residual_std)
            case Mlp():
                _normal(module.c_fc, std=(2 * width) ** -0.5)
                _normal(module.c_proj, std=residual_std)


def _normal(linear: nn.Linear, *, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
