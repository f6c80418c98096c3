"""A damaged input, what is done with it, and what must hold of every one."""

import fnmatch
import hashlib
import os
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

from fuzz.commands import Command, Outcome

SEED = 0
LIMIT_S = 10
_ROOM_GIB = 4
CANARY = "it_ran"
"""The file that code in a damaged input would write, if it ran."""
_LONGEST_MESSAGE = 4000

Damage = Callable[[Path, Random], None]


class TooLongError(BaseException):
    """A case did not end: no `except Exception` may swallow this."""


@dataclass(frozen=True)
class Case:
    """An input and what is done with it.

    Args:
        kind: of the input; a section of the table.
        what: the damage, in the words of the table.
        names: what a message of refusal has to name: the file, or the key; one of several, parted by `|`.
    """

    kind: str
    what: str
    damage: Damage
    commands: tuple[Command, ...]
    names: str

    @property
    def id(self) -> str:
        """For the test's name."""
        return re.sub(r"\W+", "_", f"{self.kind} {self.what}").strip("_")[:90]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    kind: str
    what: str
    command: str
    outcome: Outcome


def run_case(case: Case, base: Path) -> list[Row]:
    """Damage a copy of the world for each command, run it, and check that nothing was lost.

    Raises:
        AssertionError: a hang, an exception, a stack trace, a message that names nothing, a file that is lost
            or changed, or code that ran.
    """
    rows = []
    for command in case.commands:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
            folder = Path(temporary).resolve() / "w"
            shutil.copytree(base, folder)
            case.damage(folder, Random(f"{SEED} {case.kind} {case.what}"))
            before = _contents(folder)
            outcome = _run(command, folder)
            _require(case, command, outcome, before, folder)
        rows.append(Row(case.kind, case.what, command.name, outcome))
    return rows


def _run(command: Command, folder: Path) -> Outcome:
    with in_folder(folder), _limited(f"{command.name} did not end within {LIMIT_S} s"):
        outcome = command.run()
    # The index names whole paths; the table says what they are below the folder of the case.
    return Outcome(outcome.ending, outcome.message.replace(f"{folder}/", ""), outcome.failed)


def _require(case: Case, command: Command, outcome: Outcome, before: dict[str, str], folder: Path) -> None:
    assert not (folder / CANARY).exists(), f"code ran: {case.what}"
    if outcome.failed:
        assert outcome.message, "refused without a message"
        assert any(name in outcome.message for name in case.names.split("|")), (
            f"names no {case.names}: {outcome.message}"
        )
        assert len(outcome.message) < _LONGEST_MESSAGE, f"{len(outcome.message)} characters of message"
    after = _contents(folder)
    for name, digest in before.items():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in command.rewrites):
            assert after.get(name) == digest, f"{name} is {'changed' if name in after else 'lost'}"


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CANARY
    }


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    back = Path.cwd()
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder / "cache"), "HYDRA_FULL_ERROR": ""}):
            yield
    finally:
        os.chdir(back)


@contextmanager
def _limited(message: str) -> Iterator[None]:
    """End what takes too long or too much memory."""

    def late(number: int, frame: object) -> None:
        raise TooLongError(message)

    handler = signal.signal(signal.SIGALRM, late)
    start, (rest, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, LIMIT_S, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + (_ROOM_GIB << 30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if rest:  # of the test's own limit
            signal.setitimer(signal.ITIMER_REAL, max(0.1, rest - (time.monotonic() - start)), interval)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
