"""What files beside shards may be called."""

import re

from vlm.errors import ConfigError


def check_name(name: str) -> None:
    """Raise a ConfigError where files beside shards cannot be called so."""
    if not re.fullmatch(r"[\w-]+", name) or name == "index":
        raise ConfigError(
            f"name={name!r} has to be of letters, digits, - and _, and not index: the files lie beside "
            "each shard as <shard>.<name>.parquet"
        )
