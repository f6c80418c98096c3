"""What every command does around its work."""

import functools
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlm.errors import CRASHED, OF_ONE_RANK, VlmError
from vlm.schema import unknown_key_message
from vlm.settings import config_dir, register_schemas, root_keys

_LONGEST = 1000
"""Characters of a message that a library wrote."""


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a function of a composed configuration into a command.

    A user's mistake is one line and exit code 1, never a stack trace. Anything else is a stack trace, on the
    rank that it came to, and an exit code that tells it from a mistake.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        started = False

        @functools.wraps(function)
        def with_user_errors(config: DictConfig) -> None:
            nonlocal started
            started = True  # what is raised before is about the configuration
            _quiet_logging()
            try:
                function(config)
            except (VlmError, OSError) as error:
                _exit(error)
            except KeyboardInterrupt:
                sys.exit(130)
            except Exception:
                traceback.print_exc()
                sys.exit(CRASHED)

        def main() -> None:
            nonlocal started
            started = False
            register_schemas()
            _refuse_null_groups(sys.argv[1:])
            _refuse_new_keys(sys.argv[1:], config_name)
            sys.argv = [sys.argv[0], *(quote_value(argument) for argument in sys.argv[1:])]
            run: Any = hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here; Hydra prints stack traces
            try:
                run(with_user_errors)()
            except Exception as error:
                if started:
                    raise
                sys.exit(f"ConfigError: {_unknown_key(error) or _in_words(error)}")

        main.__doc__ = function.__doc__
        return main

    return decorate


def take_data_as_shards() -> None:
    """Read `data=PATTERN` on the command line as `data.shards=PATTERN`."""
    # To Hydra `data` alone is the group of that name, of which a pattern is no option.
    sys.argv = [f"data.shards={word[5:]}" if word.startswith("data=") else word for word in sys.argv]


def _in_words(error: BaseException) -> str:
    """What is wrong with a configuration that cannot be composed, on one line."""
    said = [re.sub(r"\s+", " ", str(error) or type(error).__name__).strip()]
    cause = error.__cause__
    if cause is not None and str(cause).partition("\n")[0] not in said[0]:
        said.append(str(cause).partition("\n")[0])
    if "Key 'experiment' not in" in said[0]:
        said.append("a recipe begins with the line # @package _global_")
    absent = re.match(r"(In '[^']*': )Could not (?:load|find) '([^'/]+)/([^']+)'", said[0])
    if absent and (options := _options(absent[2])):
        where, group, name = absent.groups()
        own = f"a file {group}/{name}.yaml of your own is found by --config-dir FOLDER"
        said = [f"{where}{group} has no {name!r}; there are {options}; {own}"]
    if file := _file_of(error):
        said.insert(0, f"{file} cannot be read")
    return re.sub(r" Config search path:.*", "", "; ".join(said))[:_LONGEST]


def _unknown_key(error: BaseException) -> str | None:
    """A key at the root that the command does not have: Hydra would advise to add it, and nobody reads it."""
    found = re.search(r"Key '([^']+)' not in '(\w+Settings)'", str(error.__cause__ or ""))
    overridden = str(error).startswith("Could not override")
    return unknown_key_message(found[1], root_keys(found[2]), where="") if found and overridden else None


def _refuse_new_keys(arguments: list[str], config_name: str) -> None:
    """As `_unknown_key`, of what the user adds."""
    for argument in arguments:
        found = re.match(r"\+{1,2}([A-Za-z_]\w*)[=.@]", argument)
        known = root_keys(f"{config_name.capitalize()}Settings")
        if found and known and found[1] not in {*known, "hydra", "experiment"}:
            sys.exit(f"ConfigError: {unknown_key_message(found[1], known, where='')}")


def _file_of(error: BaseException) -> str | None:
    """The yaml file of the user at which loading fails in the same way; some errors do not name it."""
    for path in sorted(path for folder in _own_folders() for path in Path(folder).rglob("*.yaml")):
        try:
            OmegaConf.to_container(OmegaConf.load(path))
        except (OmegaConfBaseException, UnicodeError, RecursionError) as found:
            if type(found) in (type(error), type(error.__cause__)):
                return str(path)
        except (YAMLError, OSError):  # names the file itself
            return None
    return None


def _own_folders() -> list[str]:
    """Folders of the user's, given by `--config-dir`."""
    words = [word for argument in sys.argv for word in argument.split("=")]
    return [after for word, after in pairwise(words) if word in ("--config-dir", "-cd")]


def _options(group: str) -> str:
    """The files of a group, those in folders of it too."""
    folders = [Path(folder, group) for folder in (config_dir(), *_own_folders())]
    files = [path.relative_to(folder) for folder in folders for path in folder.rglob("*.yaml")]
    return ", ".join(sorted({file.with_suffix("").as_posix() for file in files}))


def _exit(error: Exception) -> NoReturn:
    """One line: from the first rank where all are known to have the same to say, else from each that has.

    Before the ranks are joined they all meet the same.
    """
    from vlm.distributed import Topology, is_main_process  # imports torch

    topology, code = Topology.current(), getattr(error, "exit_code", 1)
    message = f"{type(error).__name__}: {error}"
    if topology.world_size > 1 and not getattr(error, "of_all_ranks", False):
        print(message if topology.is_main else f"rank {topology.rank}: {message}", file=sys.stderr)
        sys.exit(OF_ONE_RANK if code == 1 else code)
    speaks = is_main_process()
    if speaks and code == 1:
        sys.exit(message)
    if speaks:
        print(message, file=sys.stderr)
    sys.exit(code)


def quote_value(argument: str) -> str:
    """`shards=a/{00..41}.tar` as `shards='a/{00..41}.tar'`, and `caption=[标题,en]` as `caption=['标题',en]`.

    Hydra would read the braces as a dictionary, and knows no letters but English ones outside of quotes.
    """
    match = re.fullmatch(r"([^=\s]+)=(.+)", argument, re.DOTALL)
    if match is None or "${" in argument:
        return argument
    key, value = match.groups()
    if value[0] == "[" and value[-1] == "]":
        return f"{key}=[{','.join(_quote_element(element) for element in _elements(value[1:-1]))}]"
    return f"{key}={_quote(value)}"


def _quote(value: str) -> str:
    """A bare value in quotes, if it needs them."""
    needs = re.fullmatch(r"(?![\[{(])[^'\"]*[{\u0080-\U0010ffff][^'\"]*", value)
    return f"'{value}'" if needs else value


def _quote_element(element: str) -> str:
    bare = element.strip()
    return element.replace(bare, _quote(bare))


def _elements(inside: str) -> list[str]:
    """What stands between the commas of a list, but for those within quotes and brackets."""
    elements, depth, quote = [""], 0, ""
    for character in inside:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{(") - (character in ")}]")
            if character == "," and depth == 0:
                elements.append("")
                continue
        elements[-1] += character
    return elements


def _refuse_null_groups(arguments: list[str]) -> None:
    """Hydra answers `suite=null`, `model=7` and `datasets=[7]` with errors that do not name the key."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        names = option[1:-1].split(",") if option[:1] == "[" else [option]
        no_name = any(re.fullmatch(r"null|true|false|[-+.\d]+", name.strip()) for name in names)
        if no_name and group.isidentifier() and Path(config_dir(), group).is_dir():
            sys.exit(f"ConfigError: {argument} names no option of {group}; use {_options(group)}")


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
