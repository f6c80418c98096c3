import json
from pathlib import Path

import pytest
import yaml
from tiny_model import TEXTS, tiny_mapping

from vlm.errors import ConfigError
from vlm.models import CausalTextSpec, ModelSpec

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_spec_survives_json(kind: str) -> None:
    spec = ModelSpec.from_mapping(tiny_mapping(kind))
    assert ModelSpec.from_mapping(json.loads(json.dumps(spec.to_mapping()))) == spec


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_model_config_holds_exactly_the_keys_of_a_spec(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    for base in values.pop("defaults", ["_self_"])[:-1]:  # what another model says, and more
        values = yaml.safe_load(path.with_stem(base).read_text()) | values
    assert ModelSpec.from_mapping(values).to_mapping() == values


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("place", ["", "image", "text"])
def test_an_unknown_key_is_named_with_its_path(kind: str, place: str) -> None:
    values = tiny_mapping(kind)
    (values[place] if place else values)["embed_dmi"] = 3
    with pytest.raises(ConfigError, match=rf"^model\.{place + '.' if place else ''}embed_dmi is not a key"):
        ModelSpec.from_mapping(values)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("place", ["", "image", "text"])
def test_every_key_is_required(kind: str, place: str) -> None:
    for name in tiny_mapping(kind)[place] if place else tiny_mapping(kind):
        values = tiny_mapping(kind)
        del (values[place] if place else values)[name]
        with pytest.raises(
            ConfigError,
            match=rf"^model\.{place + '.' if place else ''}{name}( is missing|=None must be one of)",
        ):
            ModelSpec.from_mapping(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"heads": 3}, r"model\.text\.heads=3 does not divide model\.text\.width=16"),
        ({"layers": 0}, r"model\.text\.layers=0"),
        ({"width": 16.0}, r"model\.text\.width=16\.0 must be a whole number"),
        ({"width": True}, r"model\.text\.width=True must be a whole number"),
        ({"activation": "relu"}, r"model\.text\.activation='relu' must be one of gelu, quick_gelu"),
        ({"kind": "recurrent"}, r"model\.text\.kind='recurrent' must be one of causal, bag_of_words"),
        ({"context_length": -1}, r"model\.text\.context_length=-1"),
        ({"eot_id": "end"}, r"model\.text\.eot_id='end' must be a whole number or null"),
        ({"eot_id": -1}, r"model\.text\.eot_id=-1"),
    ],
)
def test_a_bad_value_of_the_text_tower_is_named(text: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSpec.from_mapping(tiny_mapping(**text))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"image_size": "64"}, r"model\.image\.image_size='64'"),
        ({"mean": 0.5}, r"model\.image\.mean=0\.5 must be three numbers"),
        ({"mean": [0.5] * 4}, r"model\.image\.mean=.* must be three numbers"),
        ({"mean": [0.5]}, r"model\.image\.mean=\[0\.5\] must be three numbers"),
        ({"std": [0.1, 0.1, 0]}, r"model\.image\.std=.* must be positive"),
        ({"pretrained": 1}, r"model\.image\.pretrained=1 must be true or false or a text"),
        ({"options": {"img_size": 3}}, r"model\.image\.options\.img_size is set by the project"),
    ],
)
def test_a_bad_value_of_the_image_tower_is_named(image: dict[str, object], message: str) -> None:
    values = tiny_mapping()
    values["image"] |= image
    with pytest.raises(ConfigError, match=message):
        ModelSpec.from_mapping(values)


def test_pretrained_weights_and_a_configuration_of_ones_own_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"model\.text\.pretrained=true"):
        ModelSpec.from_mapping(tiny_mapping("transformers", pretrained=True))


def test_what_is_left_to_the_tokenizer_is_filled_in() -> None:
    spec = ModelSpec.from_mapping(tiny_mapping(vocab_size=None, eot_id=None))
    text = spec.with_tokenizer(vocab_size=99, eot_id=7).text
    assert isinstance(text, CausalTextSpec)
    assert (text.vocab_size, text.eot_id) == (99, 7)
    larger = ModelSpec.from_mapping(tiny_mapping(vocab_size=128, eot_id=None))
    assert larger.with_tokenizer(vocab_size=99, eot_id=7).text.vocab_size == 128


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    spec = ModelSpec.from_mapping(tiny_mapping(vocab_size=40, eot_id=2))
    with pytest.raises(ConfigError, match=r"model\.text\.vocab_size=40 is smaller than the tokenizer's 41"):
        spec.with_tokenizer(vocab_size=41, eot_id=2)
    with pytest.raises(ConfigError, match=r"model\.text\.eot_id=2 is not the tokenizer's end of text, 3"):
        spec.with_tokenizer(vocab_size=40, eot_id=3)
