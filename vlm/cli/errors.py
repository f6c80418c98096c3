"""A user's mistake is one line and exit code 1, never a stack trace."""

import functools
import logging
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vlm.errors import VlmError

P = ParamSpec("P")
T = TypeVar("T")


def user_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Print the message of a `VlmError` and exit with code 1; let every other exception through."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        _quiet_logging()
        try:
            return function(*args, **kwargs)
        except VlmError as error:
            sys.exit(f"{type(error).__name__}: {error}")

    return wrapped


def _quiet_logging() -> None:
    """The project's own messages from INFO on; of others, what went wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("vlm").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # they print a second time
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning about its own insides, and about logging that this project does itself.
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
