"""A command as a user types it, in the process of the tests."""

import contextlib
import io
import sys

import pytest

from vlm.cli import main as vlm_command


def said_by(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What `vlm WORDS` prints, then the message it ends with."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["vlm", *words])
    with contextlib.redirect_stdout(printed):
        try:
            vlm_command.main()
        except SystemExit as end:
            return printed.getvalue() + str(end.code)
    return printed.getvalue()
