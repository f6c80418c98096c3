import math

import pytest
import torch
from tiny_model import CONTEXT, EOT, TEXTS, VOCAB, tiny_mapping
from torch import Tensor
from torch.nn import functional as F

from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.models.text_tower import CausalTransformer, token_mask
from vlm.models.transformer import QuickGELU, SelfAttention


def tower(kind: str = "causal", /, **text: object) -> DualEncoder:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_mapping(tiny_mapping(kind, **text))).double()


def rows_of_lengths(*lengths: int, width: int, padding: int = 0) -> Tensor:
    """Random words, one end of text, then padding."""
    generator = torch.Generator().manual_seed(1)
    text = torch.full((len(lengths), width), padding)
    for row, length in zip(text, lengths, strict=True):
        row[:length] = torch.randint(3, VOCAB, (length,), generator=generator)
        row[length - 1] = EOT
    return text


def loss_and_gradients(model: DualEncoder, text: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of every pair of texts, which is far from linear in each."""
    model.zero_grad()
    z = model.encode_text(text)
    loss = F.cross_entropy(model.logit_scale.exp() * z @ z.flip(0).T, torch.arange(len(z)))
    loss.backward()
    named = model.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


CASES = [(kind, {}) for kind in TEXTS] + [("transformers", {"pooling": p}) for p in ("cls", "mean")]


@pytest.mark.parametrize(("kind", "text"), CASES)
@pytest.mark.parametrize("padding", [0, EOT, 17])
def test_text_cut_to_the_longest_equals_padding_in_loss_and_every_gradient(
    kind: str, text: dict[str, str], padding: int
) -> None:
    model = tower(kind, **text)
    lengths = (3, 7, 2, 5)
    cut = loss_and_gradients(model, rows_of_lengths(*lengths, width=7, padding=padding))
    padded = loss_and_gradients(model, rows_of_lengths(*lengths, width=CONTEXT, padding=padding))
    torch.testing.assert_close(cut[0], padded[0], rtol=0, atol=1e-12)
    assert cut[1].keys() == padded[1].keys()
    for name, gradient in cut[1].items():
        torch.testing.assert_close(gradient, padded[1][name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_every_parameter_of_the_text_side_gets_a_gradient(kind: str, text: dict[str, str]) -> None:
    model = tower(kind, **text)
    _, gradients = loss_and_gradients(model, rows_of_lengths(4, 6, width=6))
    expected = {name for name, _ in model.named_parameters() if name.startswith(("text", "logit_scale"))}
    assert gradients.keys() == expected


@pytest.mark.parametrize("kind", TEXTS)
def test_what_follows_the_first_end_of_text_is_not_read(kind: str) -> None:
    model = tower(kind)
    text = rows_of_lengths(5, 5, width=9)
    text[1] = text[0]
    text[1, 5:] = torch.tensor([9, EOT, 11, EOT])
    first, second = model.encode_text(text)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_row_without_end_of_text_is_read_to_its_last_token(kind: str) -> None:
    model = tower(kind)
    text = rows_of_lengths(6, 6, width=6)
    text[:, -1] = torch.tensor([7, 8])
    text[1, :-1] = text[0, :-1]
    first, second = model.encode_text(text)
    assert not torch.allclose(first, second)


def test_token_mask_ends_with_the_first_end_of_text() -> None:
    text = torch.tensor([[5, EOT, EOT, 5], [5, 5, 5, 5], [EOT, 5, EOT, 0]])
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    assert torch.equal(token_mask(text, eot_id=EOT), expected)


def test_bag_of_words_cannot_see_order_and_the_causal_tower_can() -> None:
    text = torch.tensor([[5, 6, 7, 8, EOT], [8, 6, 5, 7, EOT]])
    a, b = tower("bag_of_words").encode_text(text)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    a, b = tower("causal").encode_text(text)
    assert (a - b).norm() > 1e-3


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_beyond_the_context_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"a text of 13 tokens exceeds model\.text\.context_length=12"):
        tower(kind).encode_text(rows_of_lengths(13, width=13))


def test_attention_equals_an_explicit_causal_softmax() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(width=12, heads=3, causal=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = attention.in_proj(x).split(12, dim=2)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    expected = attention.out_proj(torch.cat(heads, dim=2))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


def test_quick_gelu_is_within_two_hundredths_of_gelu() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    distance = (QuickGELU()(x) - F.gelu(x)).abs().max()
    assert 0.001 < distance < 0.0205


def test_the_activation_of_the_spec_is_used() -> None:
    text = rows_of_lengths(4, width=4)
    gelu, quick = tower(activation="gelu"), tower(activation="quick_gelu")
    quick.load_state_dict(gelu.state_dict())
    assert not torch.equal(gelu.encode_text(text), quick.encode_text(text))


def test_initial_spread_follows_width_and_depth() -> None:
    spec = ModelSpec.from_mapping(tiny_mapping(width=128, layers=4, heads=2, vocab_size=4000))
    torch.manual_seed(0)
    text = build_model(spec).text
    assert isinstance(text, CausalTransformer)
    block = text.blocks[1]
    expected = {
        text.token_embedding.weight: 0.02,
        text.positional_embedding: 0.01,
        block.attn.in_proj.weight: 128**-0.5,
        block.attn.out_proj.weight: (2 * 4 * 128) ** -0.5,
        block.mlp.c_fc.weight: (2 * 128) ** -0.5,
        block.mlp.c_proj.weight: (2 * 4 * 128) ** -0.5,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.05)


def test_a_spec_that_waits_for_its_tokenizer_is_not_built() -> None:
    with pytest.raises(ConfigError, match="with_tokenizer"):
        tower(vocab_size=None)
    with pytest.raises(ConfigError, match=r"model\.text\.eot_id=40 is outside of model\.text\.vocab_size=40"):
        tower(eot_id=40)
