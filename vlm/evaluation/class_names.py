"""Where the names of classes come from, and the label that each name stands for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlm.errors import ConfigError, DataError
from vlm.evaluation.evaluator import records_of
from vlm.evaluation.fields import Label, captions_of, label_of, read_text
from vlm.inference import Pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """Names and, row by row, the labels they stand for; a label may have several names."""

    names: list[str]
    labels: list[Label]


@runtime_checkable
class ClassSource(Protocol):
    """Something that class names can be read from."""

    def read(self) -> ClassNames: ...


@dataclass(frozen=True)
class ClassesFromText:
    """A text file with one name a line; the label of a name is its line, counted from 0.

    Empty lines at the end are no names.
    """

    path: str

    def read(self) -> ClassNames:
        """Raises `ConfigError` where there is no such file, `DataError` where a name is empty."""
        lines = read_text(_existing(self.path)).rstrip().split("\n")
        names = [_named(line, f"{self.path}: line {number}") for number, line in enumerate(lines, start=1)]
        return ClassNames(names=names, labels=list(range(len(names))))


@dataclass(frozen=True)
class ClassesFromJson:
    """A json list of objects, with the keys that hold the name and the label."""

    path: str
    name: str
    label: str

    def read(self) -> ClassNames:
        """Raises `ConfigError` where there is no such file, `DataError` where it is no such list."""
        try:
            entries = json.loads(read_text(_existing(self.path)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path} is no json: {error}") from error
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{self.path} has to hold a json list of objects, one for each class")
        for number, entry in enumerate(entries):
            self._check(entry, f"{self.path}: entry {number}")
        return ClassNames(
            names=[
                _named(entry[self.name], f"{self.path}: entry {number}: {self.name!r}")
                for number, entry in enumerate(entries)
            ],
            labels=[entry[self.label] for entry in entries],
        )

    def _check(self, entry: Any, where: str) -> None:
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {entry!r}, not an object")
        expected = ((self.name, str, "a text"), (self.label, int | str, "a number or a text"))
        for key, kinds, what in expected:
            if key not in entry:
                raise DataError(f"{where} has no {key!r} (it has {sorted(entry)})")
            if not isinstance(entry[key], kinds):
                raise DataError(f"{where} has {key}={entry[key]!r}, not {what}")


@dataclass(frozen=True)
class ClassesFromJsonLists:
    """A json object of lists of names, by language or by data set; the label of a name is its place, from 0.

    CLIP_benchmark's `en_classnames.json` is one, with data sets as keys.
    """

    path: str
    key: str

    def read(self) -> ClassNames:
        """Raises `ConfigError` where there is no such file or key, `DataError` where it holds no names."""
        try:
            content = json.loads(read_text(_existing(self.path)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path} is no json: {error}") from error
        if not isinstance(content, dict):
            raise DataError(f"{self.path} has to hold a json object of lists of names")
        if self.key not in content:
            raise ConfigError(f"classes.key={self.key} is not in {self.path}; it has {', '.join(content)}")
        names = content[self.key]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.path}: {self.key!r} has to hold a list of names")
        names = [_named(name, f"{self.path}: {self.key!r}: name {row}") for row, name in enumerate(names)]
        return ClassNames(names=names, labels=list(range(len(names))))


@dataclass(frozen=True)
class ClassesListed:
    """Names as they are written here: a mapping of labels to a name, or to several."""

    names: Mapping[Label, str | Sequence[str]]

    def read(self) -> ClassNames:
        """Raises `ConfigError` where there is no name, or one is no text, `DataError` where one is empty."""
        pairs: list[tuple[Any, Label]] = []
        for label, given in self.names.items():
            pairs += [(name, label) for name in (given if isinstance(given, list | tuple) else [given])]
        if not pairs:
            raise ConfigError("classes.names is empty; give a label and its name for each class")
        for name, label in pairs:
            if not isinstance(name, str):
                raise ConfigError(f"classes.names.{label}={name!r} is no text; put it in quotes")
        return ClassNames(
            names=[_named(name, f"classes.names.{label}") for name, label in pairs],
            labels=[label for _, label in pairs],
        )


@dataclass(frozen=True)
class ClassesFromShards:
    """The distinct captions of shards, each with the label of the samples that carry it."""

    shards: Pictures
    name: str
    label: str

    def read(self) -> ClassNames:
        """Raises `DataError` where a sample lacks the label, or none has a name."""
        pairs: dict[tuple[str, Label], None] = {}
        for record in records_of(self.shards, key="classes.shards"):
            label = label_of(record, self.label)
            pairs.update(((name, label), None) for name in captions_of(record, self.name))
        if not pairs:
            raise DataError(f"classes.name={self.name}: no sample of {self.shards} has such a caption")
        return ClassNames(names=[name for name, _ in pairs], labels=[label for _, label in pairs])


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ConfigError(f"classes.path={path}: no such file")
    return Path(path)


def _named(name: str, where: str) -> str:
    """A name without blanks around it. Raises `DataError` where nothing is left."""
    if not name.strip():
        raise DataError(f"{where} is empty; it has to be the name of a class")
    return name.strip()
