"""Where cases of compositional understanding come from: files of annotations, or shards."""

import gzip
import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vlm.data import ImageFile, ImageSet, ImageSource
from vlm.errors import ConfigError, DataError
from vlm.evaluation.case_fields import Case, CaseFields, FieldError, find, own_fields
from vlm.evaluation.evaluator import parts, records_of
from vlm.inference import Embedder, Patterns, Pictures

logger = logging.getLogger(__name__)

Fields = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""One mapping, as `CaseFields` takes it, or several, each of which makes cases of every entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Cases in their order, each with a picture."""

    cases: list[Case]
    picture: list[int]
    """Of each case, a row of the features."""
    broken_groups: frozenset[str] = frozenset()
    """Groups of which a picture is missing."""
    num_missing: int = 0
    """Cases without a picture that can be read."""
    num_left_out: int = 0
    """Entries that the benchmark's own scoring leaves out."""
    first_missing: str = ""

    def __post_init__(self) -> None:
        assert len(self.cases) == len(self.picture)

    def without(self, unreadable: Collection[int]) -> "Cases":
        """These cases, less those whose pictures are in these rows of the features; they count as missing."""
        pairs = list(zip(self.cases, self.picture, strict=True))
        kept = [(case, row) for case, row in pairs if row not in unreadable]
        lost = [case for case, row in pairs if row in unreadable]
        return replace(
            self,
            cases=[case for case, _ in kept],
            picture=[row for _, row in kept],
            broken_groups=self.broken_groups | {case.group for case in lost if case.group is not None},
            num_missing=self.num_missing + len(lost),
        )


@runtime_checkable
class CaseSource(Protocol):
    """Something that cases and their pictures are read from."""

    def read(self) -> Cases:
        """The cases; their pictures are not read."""
        ...

    def embed(self, embedder: Embedder) -> tuple[Cases, Float[Tensor, "n d"]]:
        """The cases and the features of their pictures."""
        ...

    def pictures(self) -> list[str | ImageSource]:
        """Where a report finds them, as `Result.details["shards"]` has it."""
        ...


class CasesFromShards:
    """Cases of the samples of shards.

    Args:
        shards: pattern, or list of patterns.
        fields: which field of a record, such as `json.caption_en`, holds what.

    Raises:
        ConfigError: the fields are no such mapping.
    """

    def __init__(self, shards: Pictures, *, fields: Fields) -> None:
        self.shards = shards
        self._fields = _compiled(fields)

    def read(self) -> Cases:
        """Raises `DataError` where a sample lacks a field, or none has a case."""
        return self._of(records_of(self.shards, key="cases.shards"))

    def embed(self, embedder: Embedder) -> tuple[Cases, Float[Tensor, "n d"]]:
        """As `read`, with a row for each sample."""
        images = embedder.images(self.shards)
        return self._of(images.records), images.features

    def pictures(self) -> list[str | ImageSource]:
        """The shards; a picture is its position."""
        return parts(self.shards)

    def _of(self, records: Sequence[Mapping[str, Any]]) -> Cases:
        found = [
            (row, case)
            for row, record in enumerate(records)
            for case in _cases_of(record, self._fields, where=f"sample {record['key']} of {self.shards}")
        ]
        for fields in self._fields:
            if not any(case for record in records for case in fields.cases(record)):
                asked = fields.names["each_false_caption"]
                raise DataError(f"cases.fields: no sample of {self.shards} has anything in {asked!r}")
        return Cases(cases=[case for _, case in found], picture=[row for row, _ in found])


class CasesFromFiles:
    """Cases of files of annotations: `.json` (a list or a mapping of entries) or `.jsonl`, also with `.gz`.

    A case without a category has the name of its file, up to the first dot.

    Args:
        files: pattern, or list of patterns.
        images: folder of the pictures, or several in which each is looked for.
        fields: which field of an entry holds what; None where the files are in the documented format.
        at_least: field -> number; entries with less are left out.

    Raises:
        ConfigError: the fields are no such mapping.
    """

    def __init__(
        self,
        files: Patterns,
        images: Patterns,
        *,
        fields: Fields | None = None,
        at_least: Mapping[str, int | float] | None = None,
    ) -> None:
        self.files = files
        self.images = images
        self.at_least = dict(at_least or {})
        self._fields = None if fields is None else _compiled(fields)
        if any("image" not in mapping.names for mapping in self._fields or []):
            raise ConfigError("cases.fields names no image; set image, such as '{filename}'")

    def read(self) -> Cases:
        """Raises `ConfigError`, `DataError`: no file or folder; no json; a field or all pictures missing."""
        return self._found[0]

    def embed(self, embedder: Embedder) -> tuple[Cases, Float[Tensor, "n d"]]:
        """As `read`, with a row for each distinct picture, but without the cases of those that are no images.

        Raises:
            DataError: no picture is an image.
        """
        cases, files = self._found
        images = embedder.image_files(files)
        unreadable = {
            row: record["unreadable"] for row, record in enumerate(images.records) if "unreadable" in record
        }
        if len(unreadable) == len(files):
            raise DataError(f"cases.images={self.images}: no picture can be read; {unreadable[0]}")
        if unreadable and embedder.topology.is_main:
            first = next(iter(unreadable.values()))
            logger.warning("%d of %d pictures are left out; %s", len(unreadable), len(files), first)
        return cases.without(unreadable), images.features

    def pictures(self) -> list[str | ImageSource]:
        """The files of all rows."""
        files = self._found[1]
        return [ImageSet(files, [{"key": file.path} for file in files])]

    @cached_property
    def _found(self) -> tuple[Cases, list[ImageFile]]:
        roots = [Path(root) for root in _list(self.images)]
        for root in roots:
            if not root.is_dir():
                raise ConfigError(f"cases.images={root}: no such folder; name the folder of the pictures")
        everything, num_left_out = self._everything()
        places = {image: _place(image, roots) for image in {case.image for case in everything}}
        missing = [case for case in everything if places[case.image] is None]
        cases = [case for case in everything if places[case.image] is not None]
        first_missing = str(roots[0] / missing[0].image) if missing else ""
        if not cases:
            raise DataError(
                f"cases.images={self.images}: none of {len(everything)} cases of {self.files} has its "
                f"picture there, the first would be {first_missing}"
            )
        number: dict[ImageFile, int] = {}
        files = [ImageFile(places[case.image] or "", case.box) for case in cases]
        return Cases(
            cases=cases,
            picture=[number.setdefault(file, len(number)) for file in files],
            broken_groups=frozenset(case.group for case in missing if case.group is not None),
            num_missing=len(missing),
            num_left_out=num_left_out,
            first_missing=first_missing,
        ), list(number)

    def _everything(self) -> tuple[list[Case], int]:
        """The cases of all files, and how many entries are left out."""
        cases: list[Case] = []
        num_left_out = 0
        for path in _matching(_list(self.files)):
            name = path.name.split(".")[0]
            for where, entry in _entries(path):
                if not self._is_kept(entry, where):
                    num_left_out += 1
                    continue
                found = _cases_of(entry, self._fields, where=where)
                cases += [_in_file(case, name) for case in found]
        if not cases:
            raise DataError(f"cases.files={self.files!r} hold no cases")
        return cases, num_left_out

    def _is_kept(self, entry: Any, where: str) -> bool:
        for path, least in self.at_least.items():
            value = find(entry, path)
            if not isinstance(value, int | float):
                raise DataError(f"{where} has {path}={value!r}, not a number; correct cases.at_least")
            if value < least:
                return False
        return True


def _list(names: Patterns) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _in_file(case: Case, name: str) -> Case:
    """With a category, and a group that no other file has."""
    group = None if case.group is None else f"{name}/{case.group}"
    return replace(case, category=case.category or name, group=group)


def _compiled(fields: Fields) -> list[CaseFields]:
    mappings = [fields] if isinstance(fields, Mapping) else list(fields)
    if not mappings:
        raise ConfigError("cases.fields is empty; say which field holds what")
    return [CaseFields(mapping, "cases.fields") for mapping in mappings]


def _cases_of(entry: Any, fields: list[CaseFields] | None, *, where: str) -> list[Case]:
    try:
        mappings = [own_fields(entry, "cases.fields")] if fields is None else fields
        return [case for mapping in mappings for case in mapping.cases(entry)]
    except FieldError as error:
        hint = "" if fields is None else "; correct cases.fields"
        raise DataError(f"{where} {error}{hint}") from error


def _matching(wanted: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in wanted:
        paths = [Path(pattern)] if Path(pattern).is_file() else [Path(path) for path in sorted(glob(pattern))]
        if not paths:
            raise ConfigError(f"cases.files={pattern!r} matches no file")
        found += paths
    return found


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each entry of a file stands, and the entry."""
    text = _text(path)
    if ".jsonl" in path.suffixes:
        for number, line in enumerate(text.split("\n"), start=1):  # json may hold U+2028
            if line.strip():
                yield f"{path}: line {number}", _parsed(line, f"{path}: line {number}")
        return
    content = _parsed(text, str(path))
    if not isinstance(content, list | dict):
        raise DataError(f"{path} has to hold a list or a mapping of entries")
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    yield from ((f"{path}: entry {name}", entry) for name, entry in pairs)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no json: {error}; one case a line is for files named .jsonl") from error


def _place(image: str, roots: Sequence[Path]) -> str | None:
    """The file of a picture in the first folder that has it."""
    paths = (os.path.join(root, image) for root in roots)
    return next((path for path in paths if os.path.isfile(path)), None)
