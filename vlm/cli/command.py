"""What every command does around its work."""

import functools
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

from vlm.errors import VlmError
from vlm.settings import config_dir, register_schemas


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a function of a composed configuration into a command.

    A user's mistake is one line and exit code 1, never a stack trace.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def with_user_errors(config: DictConfig) -> None:
            _quiet_logging()
            try:
                function(config)
            except (VlmError, OSError) as error:
                _exit(error)
            except KeyboardInterrupt:
                sys.exit(130)

        def main() -> None:
            register_schemas()
            _refuse_null_groups(sys.argv[1:])
            sys.argv = [sys.argv[0], *(quote_value(argument) for argument in sys.argv[1:])]
            run: Any = hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)
            run(with_user_errors)()

        main.__doc__ = function.__doc__
        return main

    return decorate


def _exit(error: Exception) -> NoReturn:
    """One line, from one rank: the others have the same to say."""
    from vlm.distributed import is_main_process  # imports torch

    code = getattr(error, "exit_code", 1)
    message = f"{type(error).__name__}: {error}"
    if is_main_process() and code == 1:
        sys.exit(message)
    if is_main_process():
        print(message, file=sys.stderr)
    sys.exit(code)


def quote_value(argument: str) -> str:
    """`shards=a/{00..41}.tar` as `shards='a/{00..41}.tar'`, and `caption=标题` as `caption='标题'`.

    Hydra would read the braces as a dictionary, and knows no letters but English ones outside of quotes.
    """
    match = re.fullmatch(r"([^=\s]+)=([^'\"\[{(][^'\"]*[{\u0080-\U0010ffff][^'\"]*|[^\x00-\x7f])", argument)
    return f"{match[1]}='{match[2]}'" if match and "${" not in argument else argument


def _refuse_null_groups(arguments: list[str]) -> None:
    """Hydra answers `suite=null` with a stack trace."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option == "null" and group.isidentifier() and Path(config_dir(), group).is_dir():
            options = sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))
            sys.exit(f"ConfigError: {argument} names no option of {group}; use {', '.join(options)}")


def _quiet_logging() -> None:
    """The project's own messages from INFO on; of others, what went wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("vlm").setLevel(logging.INFO)
    # Lightning about its own insides, and about logging that this project does itself.
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    threading.excepthook = _tell_of_thread


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """A full disk is one line in a library's thread too; the command meets it by itself, and ends."""
    if isinstance(failure.exc_value, OSError):
        logging.getLogger(__name__).warning("%s", failure.exc_value)
    else:
        threading.__excepthook__(failure)
