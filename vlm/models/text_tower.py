"""The project's own text towers: a causal transformer, and a bag of words as its control.

Every text tower reads a row up to and including its first end-of-text token. What stands behind it is
padding, whatever its ids are, and changes neither the result nor any gradient: rows may be cut to the
longest of a batch, and a vocabulary needs no id of its own for padding.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.errors import ConfigError
from vlm.models.spec import Activation, BagOfWordsSpec, CausalTextSpec, TextTowerSpec


def token_mask(text: Int64[Tensor, "b l"], *, eot_id: int) -> Bool[Tensor, "b l"]:
    """True up to and including the first end-of-text token of each row; all of a row that has none."""
    is_eot = text == eot_id
    return is_eot.cumsum(dim=1) - is_eot.long() == 0


def at_end_of_text(hidden: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """The vector at the last position of each row that `mask` holds."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.sum(dim=1) - 1]


def mean_over_text(hidden: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """The mean over the positions of each row that `mask` holds."""
    kept = hidden.masked_fill(~mask.unsqueeze(2), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


class TextTower(nn.Module):
    """What the text towers share: their description, and how far into a row they read.

    Raises:
        ConfigError: the spec still leaves its vocabulary to a tokenizer, or contradicts itself.
    """

    spec: TextTowerSpec
    """As built: complete without any file or name outside of it."""
    width: int

    def __init__(self, spec: TextTowerSpec, *, width: int) -> None:
        super().__init__()
        if spec.vocab_size is None or spec.eot_id is None:
            raise ConfigError(
                "model.text.vocab_size and model.text.eot_id are null; "
                "fill them in with ModelSpec.with_tokenizer before building"
            )
        if spec.eot_id >= spec.vocab_size:
            raise ConfigError(
                f"model.text.eot_id={spec.eot_id} is outside of model.text.vocab_size={spec.vocab_size}"
            )
        self.spec = spec
        self.width = width
        self.vocab_size = spec.vocab_size
        self.eot_id = spec.eot_id

    def read_mask(self, text: Int64[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """`token_mask` of rows that the tower has positions for.

        Raises:
            ConfigError: the rows are longer than the context.
        """
        if text.shape[1] > self.spec.context_length:
            raise ConfigError(
                f"a text of {text.shape[1]} tokens exceeds model.text.context_length="
                f"{self.spec.context_length}; raise it, or cut texts with tokenizer.context_length"
            )
        return token_mask(text, eot_id=self.eot_id)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation of the first CLIP weights, where later ones have GELU."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * torch.sigmoid(1.702 * x)


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and those before it."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        b, l, d = x.shape  # noqa: E741
        qkv = self.in_proj(x).view(b, l, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # No mask for padding: it stands behind the end of text, which causal attention never looks past.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, l, d))  # type: ignore[no-any-return]


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
    """Attention and MLP, each on the normalised input and added to it."""

    def __init__(self, *, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width=width, heads=heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width=width, activation=activation)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class CausalTransformer(TextTower):
    """CLIP's text tower: learned positions, causal pre-norm blocks, the vector at the end of text.

    Source: arXiv:2103.00020, section 2.4.
    """

    def __init__(self, spec: CausalTextSpec) -> None:
        super().__init__(spec, width=spec.width)
        self.token_embedding = nn.Embedding(self.vocab_size, spec.width)
        self.positional_embedding = nn.Parameter(torch.empty(spec.context_length, spec.width))
        self.blocks = nn.ModuleList(
            Block(width=spec.width, heads=spec.heads, activation=_activation(spec.activation))
            for _ in range(spec.layers)
        )
        self.ln_final = nn.LayerNorm(spec.width)
        self._initialise()

    def forward(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        mask = self.read_mask(text)
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        # Normalising is per position, so it can wait until one position is left.
        return self.ln_final(at_end_of_text(x, mask))  # type: ignore[no-any-return]

    def _initialise(self) -> None:
        """As CLIP: residual branches shrink with depth, so that their sum keeps its size."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        residual_std = (2 * len(self.blocks) * self.width) ** -0.5
        for module in self.blocks.modules():
            if isinstance(module, CausalAttention):
                _initialise_linear(module.in_proj, std=self.width**-0.5)
                _initialise_linear(module.out_proj, std=residual_std)
            elif isinstance(module, Mlp):
                _initialise_linear(module.c_fc, std=(2 * self.width) ** -0.5)
                _initialise_linear(module.c_proj, std=residual_std)


class BagOfWords(TextTower):
    """The mean of a text's token embeddings through one residual MLP: equal for every order of the words."""

    def __init__(self, spec: BagOfWordsSpec) -> None:
        super().__init__(spec, width=spec.width)
        self.token_embedding = nn.Embedding(self.vocab_size, spec.width)
        self.ln_1 = nn.LayerNorm(spec.width)
        self.mlp = Mlp(width=spec.width, activation=nn.GELU())
        self.ln_final = nn.LayerNorm(spec.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        x = mean_over_text(self.token_embedding(text), self.read_mask(text))
        return self.ln_final(x + self.mlp(self.ln_1(x)))  # type: ignore[no-any-return]


def _activation(name: Activation) -> nn.Module:
    match name:
        case "quick_gelu":
            return QuickGELU()
        case "gelu_tanh":
            return nn.GELU(approximate="tanh")
        case "gelu":
            return nn.GELU()


def _initialise_linear(linear: nn.Linear, *, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
