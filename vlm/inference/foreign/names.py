"""Parameter names and shapes of other projects in those of this one."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]
"""Pattern of a whole name, and what it becomes; the first that fits counts."""

_GROUP = re.compile(r"(\([^()]*\))")


def renamed(weights: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """`weights` under new names; a name that no rule fits stays, so that it is listed as unknown later."""
    return {_renamed(name, rules): value for name, value in weights.items()}


def inverted(rules: Rules) -> Rules:
    """The rules that lead back; each group of a pattern stands once in what its name becomes."""
    return [_inverted(pattern, new) for pattern, new in rules]


def with_joined_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`*.q_proj`, `*.k_proj` and `*.v_proj` as one `*.qkv`, in this order."""
    joined = dict(weights)
    for name in weights:
        if ".q_proj." in name:
            parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            if all(part in joined for part in parts):
                joined[name.replace(".q_proj.", ".qkv.")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def with_separate_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `with_joined_qkv`."""
    separate = dict(weights)
    for name in weights:
        if ".qkv." in name:
            parts = separate.pop(name).chunk(3)
            names = (name.replace(".qkv.", f".{part}_proj.") for part in "qkv")
            separate |= dict(zip(names, parts, strict=True))
    return separate


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


def _inverted(pattern: str, new: str) -> tuple[str, str]:
    literals, groups = _GROUP.split(pattern)[::2], _GROUP.findall(pattern)
    parts = re.split(r"\\(\d)", new)
    order = [int(number) for number in parts[1::2]]
    back = "".join(
        groups[int(part) - 1] if place % 2 else re.escape(part) for place, part in enumerate(parts)
    )
    names = [re.sub(r"\\(.)", r"\1", literal) for literal in literals]
    references = [f"\\{order.index(number) + 1}" for number in range(1, len(groups) + 1)]
    return back, "".join(a + b for a, b in zip(names, [*references, ""], strict=True))
