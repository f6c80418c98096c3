from typing import Any

import pytest
from fake_embedder import GREEDY

from vlm.errors import ConfigError
from vlm.inference import Decoding


def test_the_limits_themselves_are_allowed() -> None:
    for changed in ({"top_p": 1.0}, {"temperature": 1e-3}, {"max_length": 2}, {"strategy": "beam"}):
        Decoding(**GREEDY | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"strategy": "best"},
        {"beams": 0},
        {"beams": True},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"max_length": 0},
        {"seed": -1},
    ],
)
def test_a_value_out_of_range_names_its_key(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(ConfigError, match=rf"^decoding\.{name}="):
        Decoding(**GREEDY | changed)
