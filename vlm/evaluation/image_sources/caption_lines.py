"""Captions as lines of text, as COCO-CN and Flickr30k-CN have them."""

import re
from dataclasses import dataclass
from functools import cached_property

from vlm.data import ImageFile, ImageSet
from vlm.data.tools.tables import IMAGE_SUFFIXES
from vlm.errors import DataError
from vlm.evaluation.fields import read_text
from vlm.evaluation.image_sources.files import Folders, existing, folders, lines_of, place

_LINE = re.compile(r"([^#\s]+)(?:#\S*)?\s+(.*\S)\s*")


@dataclass(frozen=True)
class CaptionLines:
    """Lines of a picture and a caption: `<image>`, anything from a `#` on, blanks or a tab, `<caption>`.

    So are the files of COCO-CN (`COCO_val2014_000000000042#1<tab>…`), Flickr8k-CN and Flickr30k-CN
    (`1007129816.jpg#zhm#0 …`), and Flickr30k-CNA (`1007129816 …`). The file of an image without an ending is
    `<image>.jpg`. `json.captions` is the list of a picture's captions, in the order of the lines.

    Args:
        captions: the file.
        images: folder of the pictures, or several in which each is looked for.
        ids: file with one image a line, those of a split, in whose order they stand; None for all images
            of the captions.

    Raises:
        ConfigError: there is no such file or folder.
        DataError: a line is no such line, or an image of `ids` has no caption.
    """

    captions: str
    images: Folders
    ids: str | None = None

    def read(self) -> ImageSet:
        """Its pictures, in the order of `ids`, or of their first captions."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        roots = folders(self.images)
        written: dict[str, list[str]] = {}
        for where, line in lines_of(existing(self.captions, key="captions")):
            found = _LINE.fullmatch(line)
            if found is None:
                raise DataError(f"{where} is {line!r:.80}; expected <image>#<number>, a tab, <caption>")
            written.setdefault(_file(found[1]), []).append(found[2])
        names = list(written) if self.ids is None else self._listed(self.ids, written)
        if not names:
            raise DataError(f"captions={self.captions} has no lines")
        return ImageSet(
            tuple(ImageFile(place(name, roots)) for name in names),
            [{"key": name, "json": {"captions": written[name]}} for name in names],
        )

    def _listed(self, ids: str, written: dict[str, list[str]]) -> list[str]:
        lines = read_text(existing(ids, key="ids")).split()
        names = list(dict.fromkeys(_file(line.partition("#")[0]) for line in lines))
        without = [name for name in names if name not in written]
        if without:
            raise DataError(
                f"{len(without)} of {len(names)} images of ids={ids} have no caption in {self.captions}, the "
                f"first is {without[0]}; name the captions of the same split"
            )
        return names


def _file(image: str) -> str:
    return image if image.lower().endswith(IMAGE_SUFFIXES) else f"{image}.jpg"
