"""The page with the table of what was tried."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from fuzz.case import SEED, Row

PAGE = Path(__file__).parents[2] / "docs/reference/damaged_input.md"

_LONGEST = 200
_INTRODUCTION = """\
# Damaged input

{cases} inputs that are damaged, forged or mistaken, and how each command ended that was given one:
{rows} in all. `tests/fuzz/` makes them from seed {seed}, each in a folder of its own with shards, a
trained run, a recipe and tables. Of every row it is asserted that

* the command ended within {limit} seconds and 4 GiB;
* a command that trained used every sample that the shards are known to have, or counted and named it as
  broken;
* a command that refused did so with one message, without a stack trace, that names the file or the key;
* every file that was there before has the same bytes, except those that the command is meant to
  rewrite;
* nothing in the input was run: a pickle, a yaml tag, a `pipe:`, a `_target_`.

`tests/fuzz/test_damaged_input.py` tries them all and compares them with this page, which is written by

```console
$ python tests/fuzz --write
```

Messages are cut after {longest} characters here. They quote libraries, so some words change with their
versions.

A recipe is not among what strangers may send: its `_target_` keys name the classes to build, and can
name any code. Look at a recipe before you run it. The configuration in a checkpoint is only read,
except for its suite: `vlm evaluate` takes that from the checkpoint where none is named, and builds from
it nothing but evaluators of `vlm.evaluation`, on files and addresses.
"""
_KINDS = {
    "tar": "Tars",
    "image": "Images",
    "json and captions": "Json, captions, files of evaluations",
    "table": "Tables to be packed",
    "index": "Index",
    "checkpoint": "Checkpoints",
    "forged checkpoint": "Forged checkpoints: every hash and digest is right",
    "run folder": "Other files of a run",
    "foreign model": "Models of other projects",
    "recipe": "Recipes",
    "command line": "Command lines",
}


def page_of(rows: Sequence[Row], *, limit_s: int) -> str:
    """The whole page."""
    num_cases = len({(row.kind, row.what) for row in rows})
    introduction = _INTRODUCTION.format(
        cases=num_cases, rows=len(rows), seed=SEED, limit=limit_s, longest=_LONGEST
    )
    parts = [introduction]
    for kind, of_kind in groupby(rows, key=lambda row: row.kind):
        parts.append(f"## {_KINDS[kind]}\n\n| | command | ended | message |\n|---|---|---|---|\n")
        parts[-1] += "".join(f"{beginning_of(row)} {_message(row)} |\n" for row in of_kind)
    return "\n".join(parts)


def beginning_of(row: Row) -> str:
    """A line of the table up to its message, which is the same under every version of every library."""
    return f"| {_cell(row.what)} | `{row.command}` | {_cell(row.outcome.ending)} |"


def _message(row: Row) -> str:
    message = " ".join(row.outcome.message.split())
    return _cell(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…")


def _cell(text: str) -> str:
    escaped = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    for letter in "|*_<[":
        escaped = escaped.replace(letter, f"\\{letter}") if "`" not in text else escaped.replace("|", "\\|")
    return escaped
