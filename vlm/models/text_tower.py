"""The project's own text towers: a causal transformer, and a bag of words as its control.

Every text tower reads a row up to and including its first end-of-text token. What stands behind it is
padding, whatever its ids are, and changes neither the result nor any gradient: rows may be cut to the
longest of a batch, and a vocabulary needs no id of its own for padding.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.errors import ConfigError
from vlm.models.cache import Cache
from vlm.models.spec import BagOfWordsSpec, CausalTextSpec, TextTowerSpec
from vlm.models.transformer import Block, Mlp, activation_of, initialise


def token_mask(text: Int64[Tensor, "b l"], *, eot_id: int) -> Bool[Tensor, "b l"]:
    """True up to and including the first end-of-text token of each row; all of a row that has none."""
    is_eot = text == eot_id
    return is_eot.cumsum(dim=1) - is_eot.long() == 0


def at_end_of_text(hidden: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """The vector at the last position of each row that `mask` holds."""
    rows = torch.arange(
        hidden.shape[0], device=hidden.device
    )  # len() would fix the batch of an exported graph
    return hidden[rows, mask.sum(dim=1) - 1]


def mean_over_text(hidden: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """The mean over the positions of each row that `mask` holds."""
    kept = hidden.masked_fill(~mask.unsqueeze(2), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


class TextFeatures(NamedTuple):
    """A text tower's account of texts."""

    vector: Float[Tensor, "b d"]
    states: Float[Tensor, "b l e"]
    """Of each token, knowing those before it alone; what follows the end of text means nothing."""
    each: Float[Tensor, "b l e"]
    """What the vector would be if it were read at this token; without gradient."""
    mask: Bool[Tensor, "b l"]
    """True up to and including the end of text."""


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


class CausalTransformer(TextTower):
    """CLIP's text tower: learned positions, causal pre-norm blocks, the vector at the end of text.

    With a class token, which stands behind every text and sees all of it, that is the vector of the latter.

    Source: arXiv:2103.00020, section 2.4; of the class token arXiv:2205.01917, section 3.2.
    """

    def __init__(self, spec: CausalTextSpec) -> None:
        super().__init__(spec, width=spec.width)
        self.pooling = spec.pooling
        self.context_length = spec.context_length
        self.token_embedding = nn.Embedding(self.vocab_size, spec.width)
        has_class = spec.pooling != "eot"
        self.class_embedding = nn.Parameter(torch.empty(spec.width)) if has_class else None
        self.positional_embedding = nn.Parameter(torch.empty(spec.context_length + has_class, spec.width))
        self.blocks = nn.ModuleList(
            Block(width=spec.width, heads=spec.heads, activation=activation_of(spec.activation), causal=True)
            for _ in range(spec.layers)
        )
        self.ln_final = nn.LayerNorm(spec.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding, std=0.01)
        initialise(self.blocks, width=spec.width, branches=2 * spec.layers)

    def forward(
        self, text: Int64[Tensor, "b l"], *, states: bool = False, cache: Cache | None = None
    ) -> Float[Tensor, "b d"] | Float[Tensor, "b l e"] | TextFeatures:
        """The vector of each text.

        Args:
            states: give what decoders look at too.
            cache: of the beginnings of texts that `text` goes on with; gives the states of `text` alone.
        """
        if cache is not None:
            return self._extend(text, cache)
        mask = self.read_mask(text)
        hidden, vector = self._hidden(text, mask)
        # Normalising is per position, so it can wait until one position is left.
        vector = self.ln_final(vector)
        if not states:
            return vector  # type: ignore[no-any-return]
        hidden = hidden[:, : text.shape[1]]
        with torch.no_grad():
            each = self.ln_final(hidden)
        return TextFeatures(vector, hidden, each, mask)

    def _extend(self, text: Tensor, cache: Cache) -> Tensor:
        end = cache.length + text.shape[1]
        x = self.token_embedding(text) + self.positional_embedding[cache.length : end]
        for block in self.blocks:
            x = block(x, cache=cache)
        return x  # type: ignore[no-any-return]

    def _hidden(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out of the blocks for each token, and that of the vector."""
        if self.class_embedding is None:
            x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
            for block in self.blocks:
                x = block(x)
            return x, at_end_of_text(x, mask)
        if self.pooling == "class_open_clip":
            # Its class token sees a place behind the text, which has to be there, with an id of 0.
            missing = self.context_length - text.shape[1]
            text = F.pad(text.where(mask, 0), (0, missing))
            mask = F.pad(mask, (0, missing))
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        own = self.class_embedding + self.positional_embedding[-1]
        x = torch.cat([x, own.expand(x.shape[0], 1, -1)], dim=1)
        seen = self._seen(mask)
        for block in self.blocks:
            x = block(x, mask=seen)
        return x[:, :-1], x[:, -1]

    def _seen(self, mask: Bool[Tensor, "b l"]) -> Bool[Tensor, "b m m"]:
        """Each token sees what is before it; the class token, last of m = l + 1, the text and itself."""
        b, l = mask.shape  # noqa: E741
        seen = torch.ones(l + 1, l + 1, dtype=torch.bool, device=mask.device).tril().repeat(b, 1, 1)
        # One place further is what the released weights of CoCa were trained with.
        own = (1, 0) if self.pooling == "class_open_clip" else (0, 1)
        seen[:, -1] = F.pad(mask, own, value=True)
        return seen


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
