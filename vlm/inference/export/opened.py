"""An exported model as another library opens it."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What the files of an export give, asked through the library that they are for.

    Args:
        library: and its version.
        image: unit vectors of bytes.
        text: unit vectors of rows of ids, filled up to the context length; None without a text tower.
        tokens: ids of texts by the library's own tokenizer, None where it has none.
        eot_id: the end of text in the exported tokenizer; `padding` follows it.
    """

    library: str
    image: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
    text: Callable[[Int64[Tensor, "b l"]], Float[Tensor, "b d"]] | None
    tokens: Callable[[Sequence[str]], Sequence[Sequence[int]]] | None
    eot_id: int
    padding: int


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]
