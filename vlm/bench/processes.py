"""Measurements in processes of their own, one at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError


def run_process(python: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter to its end; None: this one.

    Raises:
        ConfigError: there is no such interpreter.
    """
    environment = dict(os.environ)
    if python in (None, sys.executable):
        # What this process imports vlm from, the next one must find too.
        paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [python or sys.executable, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise ConfigError(f"peer_python={python} cannot be started: {error}") from error


def last_line(done: subprocess.CompletedProcess[str], what: str, advice: str = "") -> dict[str, Any]:
    """The result that a process has printed as json.

    Raises:
        ConfigError: it has failed.
    """
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
        raise ConfigError(f"{what} failed: {reason}{advice}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def require_open_clip(python: str | None, *, key: str) -> None:
    """Raise a `ConfigError` where an interpreter has no open_clip."""
    done = run_process(python, "-c", "import open_clip, torch; print(open_clip.__version__)")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        raise ConfigError(
            f"peer=open_clip is not to be had from {python or sys.executable} ({reason}); pip install "
            f"open_clip_torch there, or name the interpreter of an environment that has it: {key}=PATH"
        )
