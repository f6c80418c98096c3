"""Data sets in CLIP_benchmark's layout, found by their folder alone."""

from pathlib import Path

from vlm.errors import ConfigError
from vlm.evaluation.class_names import ClassesFromText
from vlm.evaluation.fields import read_text
from vlm.evaluation.retrieval import Retrieval
from vlm.evaluation.zero_shot import ZeroShot

_DIGITS = 6
"""Of the number of shards; a damaged file may name any."""


def clip_benchmark(root: str, split: str) -> ZeroShot | Retrieval:
    """The evaluation that the folder `root` describes.

    `dataset_type.txt` says `retrieval` for image-text retrieval (captions in `txt`, one a line); any other
    folder is a classification with `classnames.txt`, `zeroshot_classification_templates.txt` and labels in
    `cls`. The shards are `<split>/0.tar` and on, as many as `<split>/nshards.txt` says.

    Raises:
        ConfigError: a file of the layout is missing, or the kind is not one of the two.
    """
    folder = Path(root)
    count_file = folder / split / "nshards.txt"
    count = _read(count_file)
    if not count.isdecimal() or len(count) > _DIGITS:
        raise ConfigError(f"{count_file} says {count[:40]!r}, which is no number of shards")
    shards = [str(folder / split / f"{number}.tar") for number in range(int(count))]
    kind_file = folder / "dataset_type.txt"
    kind = _read(kind_file) if kind_file.exists() else "classification"
    if kind == "retrieval":
        return Retrieval(shards, "txt", relevance=None)
    if kind != "classification":
        raise ConfigError(f"{kind_file} says {kind!r}; classification and retrieval are understood")
    return ZeroShot(
        shards,
        ClassesFromText(str(folder / "classnames.txt")),
        label="cls",
        templates=str(folder / "zeroshot_classification_templates.txt"),
    )


def _read(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path} is missing; set `root` to a data set in the layout of CLIP_benchmark")
    return read_text(path).strip()
