from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import CONTEXT, EOT, TEXTS, VOCAB, tiny_mapping
from transformers import BertConfig, BertModel, DistilBertConfig, T5Config

from vlm.errors import ConfigError
from vlm.models import DualEncoder, ModelSpec, build_model

TEXT = torch.tensor([[4, 5, 6, EOT, 0, 0], [7, 8, 9, 10, 11, EOT]])


def build(**text: Any) -> DualEncoder:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_mapping(tiny_mapping("transformers", **text))).eval()


@pytest.fixture
def saved_bert(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    values = {k: v for k, v in TEXTS["transformers"]["options"].items() if k != "model_type"}
    BertModel(BertConfig(**values)).save_pretrained(tmp_path)
    return tmp_path


def test_pretrained_weights_come_from_the_folder(saved_bert: Path) -> None:
    model = build(name=str(saved_bert), pretrained=True, options={})
    bert = BertModel.from_pretrained(saved_bert).eval()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    hidden = bert(input_ids=TEXT, attention_mask=mask).last_hidden_state
    expected = torch.stack([hidden[0, 3], hidden[1, 5]])
    torch.testing.assert_close(model.text(TEXT), expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_reads_the_tokens_it_names(saved_bert: Path, pooling: str) -> None:
    model = build(name=str(saved_bert), pretrained=True, options={}, pooling=pooling)
    hidden = model.text.encoder(input_ids=TEXT[1:]).last_hidden_state[0]
    expected = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
    torch.testing.assert_close(model.text(TEXT)[1], expected)


def test_a_model_as_built_is_rebuilt_without_the_folder(saved_bert: Path) -> None:
    model = build(name=str(saved_bert), pretrained=True, options={"layer_norm_eps": 0.5})
    for file in saved_bert.iterdir():
        file.unlink()
    again = build_model(ModelSpec.from_mapping(model.spec.to_mapping())).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_text(TEXT), model.encode_text(TEXT))
    assert again.spec == model.spec


def test_a_folder_without_pretrained_gives_its_shape_and_new_weights(saved_bert: Path) -> None:
    model = build(name=str(saved_bert), pretrained=False, options={"num_hidden_layers": 3})
    assert len(model.text.encoder.encoder.layer) == 3
    bert = BertModel.from_pretrained(saved_bert)
    weight = "embeddings.word_embeddings.weight"
    assert not torch.equal(model.text.encoder.get_parameter(weight), bert.get_parameter(weight))


SMALL: list[tuple[Any, dict[str, int]]] = [
    (DistilBertConfig, {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    (T5Config, {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
]


@pytest.mark.parametrize(("config", "values"), SMALL, ids=lambda value: getattr(value, "__name__", ""))
def test_other_families_give_one_vector_a_text(config: Any, values: dict[str, int]) -> None:
    options = {"model_type": config.model_type, "vocab_size": VOCAB, **values}
    assert build(options=options).text(TEXT).shape == (2, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"name": "/no/such/folder", "options": {}}, r"model\.text\.name='/no/such/folder' has no"),
        ({"options": {"model_type": "brt"}}, r"model\.text\.options\.model_type='brt' is no model"),
        ({"options": {"model_type": "bert", "hiden_size": 3}}, r"options\.hiden_size .* 'hidden_size'"),
        ({"options": {"model_type": "bert", "hidden_size": 10}}, r"model\.text\.options=.*multiple"),
        ({"context_length": CONTEXT + 1}, r"max_position_embeddings=12 .* 13, model\.text\.context_length"),
        ({"vocab_size": VOCAB + 1}, r"vocab_size=40 .* 41, model\.text\.vocab_size"),
    ],
)
def test_a_mistake_is_one_message_with_its_key(text: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**text)
