"""The device that a command runs on."""

from typing import Any

from vlm.errors import ConfigError


def usable_device(name: str) -> str:
    """The device of that name; `auto` takes a GPU if there is one.

    Raises:
        ConfigError: it cannot be used.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def check_batches(values: dict[str, Any]) -> None:
    """Raise a ConfigError where `batch_size` or `num_workers` are no such numbers."""
    if values["batch_size"] < 1 or values["num_workers"] < 0:
        raise ConfigError(
            f"batch_size={values['batch_size']} must be at least 1, "
            f"num_workers={values['num_workers']} at least 0"
        )
