"""What language models answered, on disk, so that no question is asked twice."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import OutputError

ANSWERS = "answers.sqlite"

CUT_OFF = "cut off"

Messages = Sequence[Mapping[str, str]]


class NoAnswerError(Exception):
    """The model says nothing to this question; another may be answered. The message is the cause."""


class Answers:
    """Answers by question; any number of threads may use it.

    Args:
        settings: on which answers depend, beside the question: the model and how it draws.

    Raises:
        OutputError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = dict(settings)
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("create table if not exists answers (question text primary key, answer text)")
        except sqlite3.Error as error:
            raise OutputError(
                f"{path} cannot be used: {error}; delete it, or name another report="
            ) from error

    def get(self, messages: Messages) -> str | None:
        """The answer, if there is one."""
        with self._lock:
            found = self._file.execute(
                "select answer from answers where question = ?", (self._key(messages),)
            ).fetchone()
        return None if found is None else str(found[0])

    def put(self, messages: Messages, answer: str) -> None:
        """Keep an answer.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with self._lock:
                self._file.execute(
                    "insert or replace into answers values (?, ?)", (self._key(messages), answer)
                )
        except sqlite3.Error as error:
            raise OutputError(f"{self._path} cannot be written: {error}") from error

    def _key(self, messages: Messages) -> str:
        said = json.dumps([self._settings, list(map(dict, messages))], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()
