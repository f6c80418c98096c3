"""Data sets in CLIP_benchmark's layout, found by their folder alone."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlm.errors import ConfigError
from vlm.evaluation.class_names import ClassesFromText
from vlm.evaluation.fields import read_text
from vlm.evaluation.multi_label import MultiLabelZeroShot
from vlm.evaluation.retrieval import Retrieval
from vlm.evaluation.zero_shot import ZeroShot

_DIGITS = 6
"""Of the number of shards; a damaged file may name any."""


@dataclass(frozen=True)
class ClipBenchmarkFolder:
    """What such a folder holds.

    `dataset_type.txt` says `retrieval` for image-text retrieval (captions in `txt`, one a line); any other
    folder is a classification with `classnames.txt`, `zeroshot_classification_templates.txt` and labels in
    `cls`, or where the file says `multilabel` in `npy`, a zero or a one for each class. The shards are
    `<split>/0.tar` and on, as many as `<split>/nshards.txt` says.

    Raises:
        ConfigError: on reading, where a file of the layout is missing.
    """

    root: Path

    @cached_property
    def kind(self) -> str:
        """`classification`, `multilabel` or `retrieval`."""
        file = self.root / "dataset_type.txt"
        kind = _read(file) if file.exists() else "classification"
        if kind not in ("classification", "multilabel", "retrieval"):
            raise ConfigError(
                f"{file} says {kind!r}; classification, multilabel and retrieval are understood"
            )
        return kind

    @property
    def names(self) -> Path:
        """The file of class names."""
        return self.root / "classnames.txt"

    @property
    def templates(self) -> Path:
        """The file of templates."""
        return self.root / "zeroshot_classification_templates.txt"

    def has(self, split: str) -> bool:
        """Whether there is such a split."""
        return (self.root / split / "nshards.txt").is_file()

    def shards(self, split: str) -> list[str]:
        """The shards of a split."""
        file = self.root / split / "nshards.txt"
        count = _read(file)
        if not count.isdecimal() or len(count) > _DIGITS:
            raise ConfigError(f"{file} says {count[:40]!r}, which is no number of shards")
        return [str(self.root / split / f"{number}.tar") for number in range(int(count))]


def clip_benchmark(root: str, split: str) -> ZeroShot | MultiLabelZeroShot | Retrieval:
    """The evaluation that a folder describes, as `ClipBenchmarkFolder` reads it.

    Raises:
        ConfigError: a file of the layout is missing, or the kind is none of the three.
    """
    folder = ClipBenchmarkFolder(Path(root))
    shards = folder.shards(split)
    if folder.kind == "retrieval":
        return Retrieval(shards, "txt", relevance=None)
    classes, templates = ClassesFromText(str(folder.names)), str(folder.templates)
    if folder.kind == "multilabel":
        return MultiLabelZeroShot(shards, classes, label="npy", templates=templates)
    return ZeroShot(shards, classes, label="cls", templates=templates)


def _read(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path} is missing; set `root` to a data set in the layout of CLIP_benchmark")
    return read_text(path).strip()
