"""What language models answered, on disk, so that no question is asked twice."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import EndpointError, OutputError

ANSWERS = "answers.sqlite"

REFUSED = "refused by the endpoint"
NOTHING_SAID = "no answer in the reply"
CUT_OFF = "cut off"
UNANSWERED = frozenset({REFUSED, NOTHING_SAID, CUT_OFF})
"""Causes that a question is without an answer, however that would read."""
ADVICE = "Where answers are cut off, raise maker.max_tokens; else correct maker.model= or maker.base_url="

# A caption that a model will not speak of costs a question for each rule; so many are the model's fault.
_LONGEST_STREAK = 100

Messages = Sequence[Mapping[str, str]]


class NoAnswerError(Exception):
    """The model says nothing to this question; another may be answered. The message is the cause."""


class Streak:
    """Questions without an answer, one after another; any number of threads may use it.

    A model that answers none is not the model that was meant, and what it leaves out would stay out.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._length = 0

    def end(self) -> None:
        """There was an answer."""
        with self._lock:
            self._length = 0

    def go_on(self, error: NoAnswerError) -> None:
        """There was none.

        Raises:
            EndpointError: there were none for long.
        """
        with self._lock:
            self._length += 1
            length = self._length
        if length >= _LONGEST_STREAK:
            said = f" ({str(error.__cause__)[:200]})" if error.__cause__ else ""
            raise EndpointError(
                f"maker.model={self._model} answered none of {length} questions in a row, the last: {error}"
                f"{said}. {ADVICE}. What was answered is kept; type the same command again"
            ) from error


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
