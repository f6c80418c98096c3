"""What attention has computed of the tokens before, so that the next token costs one token."""

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor, nn

Pair = tuple[Float[Tensor, "b h l e"], Float[Tensor, "b h l e"]]


class Cache:
    """Keys and values of a batch of rows of equal length, by the module that made them.

    `length` tokens have gone through all modules; whoever sends tokens through them calls `advance` then.

    Args:
        max_length: tokens that there may be.
    """

    def __init__(self, max_length: int) -> None:
        self.length = 0
        self._max_length = max_length
        self._own: dict[nn.Module, Pair] = {}
        self._memory: dict[nn.Module, Pair] = {}

    def extend(self, module: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        """Put those of further tokens behind the others, and give all of them."""
        if module not in self._own:
            b, h, _, e = keys.shape
            self._own[module] = (
                keys.new_empty(b, h, self._max_length, e),
                values.new_empty(b, h, self._max_length, e),
            )
        end = self.length + keys.shape[2]
        found = self._own[module]
        for stored, new in zip(found, (keys, values), strict=True):
            stored[:, :, self.length : end] = new
        return found[0][:, :, :end], found[1][:, :, :end]

    def remember(self, module: nn.Module, make: Callable[[], Pair]) -> Pair:
        """Those of what does not grow, made once."""
        if module not in self._memory:
            self._memory[module] = make()
        return self._memory[module]

    def advance(self, count: int) -> None:
        """So many tokens have gone through all modules."""
        self.length += count

    def select(self, rows: Int64[Tensor, " n"]) -> None:
        """Go on with these rows, of which some may be left out and others be there twice."""
        for store in (self._own, self._memory):
            for module, (keys, values) in store.items():
                store[module] = keys[rows], values[rows]
