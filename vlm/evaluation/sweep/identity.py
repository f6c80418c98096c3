"""What a data set is, as a digest: of the bytes of its files, wherever they lie."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.data import ImageSource
from vlm.data.index import INDEX_SUFFIX, SIZES
from vlm.data.remote import PIPE
from vlm.data.sources import expand_shards
from vlm.errors import OutputError, VlmError
from vlm.files import write_json

VECTORS = 2
"""Raised with every change of this package that makes other vectors of the same files: of how pictures are
decoded and cut, or texts tokenized."""

_OF_LANGUAGES = frozenset({"names", "templates", "captions", "cases"})
"""The keys of a data set under which each language has its own."""

_FOLDERS = frozenset({"root", "images"})
"""The keys that name folders; elsewhere a word may be called like one by chance."""


def digest_of(value: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def part_for(node: Any, language: str | None, templates: str | None) -> Any:
    """What of a definition one question is about: no other language, no other templates.

    So a language or templates that are added, renamed or changed leave the other questions what they were.
    """
    if not isinstance(node, Mapping):
        return node
    kept = {key: value for key, value in node.items() if key not in _OF_LANGUAGES}
    for key in _OF_LANGUAGES & node.keys() if language is not None else ():
        own = node[key]
        kept[key] = own[language] if isinstance(own, Mapping) and language in own else own
    if isinstance(kept.get("templates"), Mapping) and templates in kept["templates"]:
        kept["templates"] = kept["templates"][templates]
    return kept


class Digests:
    """sha256 of files, remembered by their size and time of change.

    Args:
        folder: where they are kept; any number of processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, str] = {}
        self._files: dict[int, tuple[ImageSource, Any]] = {}

    def of_data(self, node: Any, dataset: Any) -> Any:
        """A definition, the bytes of the files that it names, and what lies in its folders.

        Args:
            node: the values that the data set was made from.
            dataset: of its sources of image files, the name, size and time of each file count.
        """
        sources = [value for value in vars(dataset).values() if isinstance(value, ImageSource)]
        return [self._of_node(node, key=""), [self._of_files(source) for source in sources]]

    def _of_files(self, source: ImageSource) -> Any:
        if id(source) not in self._files:  # asked again for each question about a data set
            self._files[id(source)] = source, _statuses(source)
        return self._files[id(source)][1]

    def _of_node(self, node: Any, *, key: str) -> Any:
        """A folder under one of the keys of folders is the names, sizes and times of what lies in it."""
        if isinstance(node, Mapping):
            return {str(name): self._of_node(value, key=str(name)) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [self._of_node(value, key=key) for value in node]
        if not isinstance(node, str):
            return node
        return _listing(node) if key in _FOLDERS and os.path.isdir(node) else self.of_path(node)

    def of_path(self, text: str) -> Any:
        """The digests of what a text names, one file or several by a pattern; or the text itself."""
        if "://" in text or text.startswith(PIPE) or ("/" not in text and not _exists(text)):
            return text
        try:
            paths = [text] if os.path.isfile(text) else list(expand_shards(text, key="data"))
        except (VlmError, OSError, ValueError):
            return text  # a sentence with a stroke, a folder, or an address that is asked later
        return [self.of_file(path) if os.path.isfile(path) else path for path in paths]

    def of_file(self, path: str) -> str:
        """sha256 of the bytes of a file."""
        status = os.stat(path)
        facts = [str(Path(path).absolute()), status.st_size, status.st_mtime_ns]
        name = digest_of(facts)
        if name not in self._known:
            self._known[name] = self._remembered(name) or self._computed(name, path, facts)
        return self._known[name]

    def _remembered(self, name: str) -> str | None:
        try:
            content = json.loads((self.folder / f"{name}.json").read_text("utf-8"))
            return str(content["sha256"]) if len(content["sha256"]) == 64 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _computed(self, name: str, path: str, facts: list[Any]) -> str:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / f"{name}.json", {"file": facts, "sha256": found}, indent=1)
        except (OSError, OutputError):
            pass  # it is computed again next time
        return found


def status_of(path: str) -> list[int]:
    """Size and time of change of a file; nothing where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _exists(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except ValueError:  # a zero byte
        return False


def _listing(folder: str) -> list[Any]:
    """Name, size and time of change of every file below a folder, without what reading leaves there."""
    paths = (
        os.path.join(parent, name)
        for parent, folders, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and name != SIZES and not name.endswith(INDEX_SUFFIX)
    )
    return sorted([os.path.relpath(path, folder), *status_of(path)] for path in paths)


def _statuses(source: ImageSource) -> list[Any]:
    try:
        files = source.read().files
    except VlmError:
        return []  # the question will say what is missing
    return [[os.path.basename(file.path), *file[1:], *status_of(file.path)] for file in files]
