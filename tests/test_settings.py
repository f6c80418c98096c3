from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from vlm.errors import ConfigError
from vlm.settings import build, build_evaluators


@dataclass(frozen=True, kw_only=True)
class Part:
    lr: float
    steps: int
    name: str | None
    betas: Sequence[float] = ()
    names: Mapping[str, str] | None = None
    group: int | Literal["node"] = 1
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
        ({"group": "rack"}, r"part\.group='rack' is a str; expected int or 'node'"),
        ({"steps": 1.5}, r"part\.steps=1.5 is a float; expected int"),
        ({"steps": True}, r"part\.steps=True is a bool; expected int"),
        ({"name": 3}, r"part\.name=3 is a int; expected str or null"),
        ({"betas": 0.9}, r"part\.betas=0.9 is a float; expected a list of float"),
        ({"betas": [0.9, "high"]}, r"part\.betas=.* is a list; expected a list of float"),
        ({"names": "red"}, r"part\.names='red' is a str; expected a mapping"),
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


def test_a_misspelt_key_beside_the_evaluators_is_named() -> None:
    with pytest.raises(ConfigError, match=r"suite\.evaluator is not a key.*did you mean 'evaluators'"):
        build_evaluators({"root": "data", "evaluators": {}, "evaluator": {"a": node()}})
