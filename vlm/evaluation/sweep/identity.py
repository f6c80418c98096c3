"""What a data set is, as a digest: of the bytes of its files, wherever they lie."""

import hashlib
import json
import os
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

from vlm.data.remote import PIPE
from vlm.data.sources import expand_shards
from vlm.errors import OutputError, VlmError
from vlm.files import write_json


def digest_of(value: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Digests:
    """sha256 of files, remembered by their size and time of change.

    Args:
        folder: where they are kept; any number of processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, str] = {}

    def of_definition(self, node: Any) -> Any:
        """A definition with the digest of its bytes in the place of each path that it names.

        A folder is the names, sizes and times of what lies in it; an address stays what it is.
        """
        if isinstance(node, Mapping):
            return {str(key): self.of_definition(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.of_definition(value) for value in node]
        return self.of_path(node) if isinstance(node, str) else node

    def of_path(self, text: str) -> Any:
        """What a text names: one file, several by a pattern, a folder; or the text itself."""
        if "://" in text or text.startswith(PIPE) or ("/" not in text and not _exists(text)):
            return text
        if Path(text).is_dir():
            return _listing(Path(text))
        try:
            paths = [text] if Path(text).is_file() else list(expand_shards(text, key="data"))
        except (VlmError, OSError, ValueError):
            return text  # a sentence with a stroke, or an address that is asked later
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
        return Path(text).exists()
    except (OSError, ValueError):  # a sentence may be too long for a name
        return False


def _listing(folder: Path) -> list[Any]:
    """Of every file below a folder its name, size and time of change."""
    paths = (Path(path) for path in glob(str(folder / "**"), recursive=True))
    return sorted(
        [path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns]
        for path in paths
        if path.is_file() and (status := path.stat())
    )
