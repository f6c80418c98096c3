"""Pictures in one folder for each class."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlm.data import ImageFile, ImageSet
from vlm.data.tools.tables import IMAGE_SUFFIXES
from vlm.errors import DataError
from vlm.evaluation.image_sources.files import folders

_SUFFIXES = (*IMAGE_SUFFIXES, ".ppm", ".pgm")


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder of pictures for each class, at any depth, as `torchvision` reads it.

    The classes are numbered in the order of their names. `cls` is the number of a picture's class,
    `json.class` its name; the key is the path within the folder.

    Args:
        root: the folder.

    Raises:
        ConfigError: there is no such folder.
        DataError: it has no folder in it, or one of them no picture.
    """

    root: str

    def read(self) -> ImageSet:
        """Its pictures, class by class."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        (root,) = folders(self.root, key="root")
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        if not names:
            raise DataError(f"root={root} has no folders in it; it has to have one for each class")
        found = [(number, name, path) for number, name in enumerate(names) for path in _pictures(root / name)]
        empty = sorted(set(names) - {name for _, name, _ in found})
        if empty:
            raise DataError(
                f"root={root}: {len(empty)} of {len(names)} folders hold no picture, as {empty[0]} "
                f"({', '.join(_SUFFIXES)}); remove them, or name the folder in which each folder is a class"
            )
        return ImageSet(
            tuple(ImageFile(path) for _, _, path in found),
            [
                {"key": os.path.relpath(path, root), "cls": number, "json": {"class": name}}
                for number, name, path in found
            ],
        )


def _pictures(folder: Path) -> Iterator[str]:
    for where, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(_SUFFIXES) and name[0] != ".":
                yield os.path.join(where, name)
