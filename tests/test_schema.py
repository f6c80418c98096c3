from dataclasses import dataclass

import pytest

from vlm.errors import ConfigError
from vlm.schema import from_mapping


@dataclass(frozen=True)
class Spec:
    width: int
    depth: int = 2


def test_exactly_the_fields_are_accepted() -> None:
    assert from_mapping(Spec, {"width": 3}, key="model") == Spec(3)


def test_an_unknown_key_names_its_place_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.widht is not a key.*did you mean 'width'"):
        from_mapping(Spec, {"widht": 3}, key="model")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.width is missing"):
        from_mapping(Spec, {}, key="model")
