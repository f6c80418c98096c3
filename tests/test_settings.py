from dataclasses import dataclass
from typing import Any

import pytest

from vlm.errors import ConfigError
from vlm.settings import build


@dataclass(frozen=True, kw_only=True)
class Part:
    lr: float
    steps: int
    name: str | None
    inner: Any = None


def node(**changes: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Part", "lr": 1, "steps": 2, "name": None, **changes}


def test_a_node_is_built_with_the_nodes_in_it() -> None:
    built = build(node(inner={"a": node(steps=5)}), "part")
    assert built.inner["a"].steps == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ler": 1.0}, r"part\.ler is not a key.*did you mean 'lr'"),
        ({"lr": "fast"}, r"part\.lr='fast' is a str; expected float"),
        ({"steps": 1.5}, r"part\.steps=1.5 is a float; expected int"),
        ({"steps": True}, r"part\.steps=True is a bool; expected int"),
        ({"name": 3}, r"part\.name=3 is a int; expected str \| None"),
        ({"inner": {"x": node(stepz=1)}}, r"part\.inner\.x\.stepz is not a key"),
        ({"_target_": "vlm.nothing.Here"}, r"part\._target_=vlm\.nothing\.Here cannot be imported"),
    ],
)
def test_a_bad_key_or_type_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(node(**changes), "part")


def test_a_missing_key_is_named() -> None:
    values = node()
    del values["steps"]
    with pytest.raises(ConfigError, match=r"part\.steps is missing"):
        build(values, "part")
