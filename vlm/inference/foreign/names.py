"""Parameter names and shapes of other projects in those of this one."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]
"""Pattern of a whole name, and what it becomes; the first that fits counts."""


def renamed(weights: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """`weights` under new names; a name that no rule fits stays, so that it is listed as unknown later."""
    return {_renamed(name, rules): value for name, value in weights.items()}


def with_joined_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`*.q_proj`, `*.k_proj` and `*.v_proj` as one `*.qkv`, in this order."""
    joined = dict(weights)
    for name in weights:
        if ".q_proj." in name:
            parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            if all(part in joined for part in parts):
                joined[name.replace(".q_proj.", ".qkv.")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def num_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks stand under `prefix`, as in `transformer.resblocks.11.ln_1.weight`."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in weights if (match := pattern.match(name))), default=-1)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, new in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new)
    return name
