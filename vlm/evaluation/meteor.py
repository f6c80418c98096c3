"""METEOR, by its authors' program in Java, where that is installed."""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vlm.evaluation.caption_metrics import Words

_JAR = "meteor-1.5.jar"
_COMMAND = ("java", "-jar", "-Xmx2G", _JAR, "-", "-", "-stdio", "-l", "en", "-norm")


class NoMeteorError(Exception):
    """METEOR cannot be computed here; says why, and what to install."""


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """METEOR 1.5 of an English corpus, as coco-caption calls it.

    The program and its table of paraphrases come with the package pycocoevalcap, which no part of this
    project needs otherwise.

    Raises:
        NoMeteorError: the package or Java is missing, or the program fails.

    Source: Denkowski and Lavie, "Meteor universal", WMT 2014.
    """
    folder = _program()
    asked = [
        " ||| ".join(["SCORE", *(" ".join(ref) for ref in own), " ".join(words)])
        for words, own in zip(candidates, references, strict=True)
    ]
    counts = _answers(folder, asked)
    scores = _answers(folder, [" ||| ".join(["EVAL", *counts])])  # one of each caption, then that of all
    try:
        return float(scores[-1])
    except (IndexError, ValueError) as error:
        raise NoMeteorError(f"METEOR is left out: its program answers {scores[-1:]}") from error


def _program() -> Path:
    package = importlib.util.find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or []) if package else []
    folder = Path(folders[0]) / "meteor" if folders else None
    if folder is None or not (folder / _JAR).is_file():
        raise NoMeteorError("METEOR is left out: it needs pycocoevalcap (pip install pycocoevalcap) and Java")
    if shutil.which("java") is None:
        raise NoMeteorError("METEOR is left out: it needs Java (no `java` on the PATH)")
    return folder


def _answers(folder: Path, lines: Sequence[str]) -> list[str]:
    try:
        done = subprocess.run(
            _COMMAND,
            cwd=folder,
            input="".join(f"{line}\n" for line in lines),
            encoding="utf-8",
            capture_output=True,
            check=False,
        )
    except (OSError, UnicodeError) as error:
        raise NoMeteorError(f"METEOR is left out: its program failed: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split()[-30:])
        raise NoMeteorError(f"METEOR is left out: its program failed with {done.returncode}: {said}")
    return done.stdout.splitlines()
