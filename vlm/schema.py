"""Plain data (from yaml or json) to frozen dataclasses, strictly: an unknown or missing key is an error."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vlm.errors import ConfigError

T = TypeVar("T")


def unknown_key_message(key: str, accepted: Iterable[str], *, where: str) -> str:
    """One line for a misspelt key: what was found, the nearest accepted key, and all of them."""
    names = sorted(accepted)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    place = f"{where}.{key}" if where else key
    return f"{place} is not a key of the configuration{hint} (accepted here: {', '.join(names)})"


def from_mapping(cls: type[T], values: Mapping[str, Any], *, key: str) -> T:
    """Build the dataclass `cls` from a mapping that has exactly its fields.

    Fields with a default may be absent. Nested values are passed on as they are: a dataclass that holds
    others parses them in its own `from_mapping`.

    Args:
        key: where `values` stands in the configuration, for messages.

    Raises:
        ConfigError: naming the first unknown or missing key.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(unknown_key_message(str(name), fields, where=key))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{key}.{name} is missing; set it")
    return cls(**values)
