"""Crossmodal-3600: captions of the same pictures in 36 languages."""

from dataclasses import dataclass
from functools import cached_property

from vlm.data import ImageFile, ImageSet
from vlm.errors import DataError
from vlm.evaluation.image_sources.files import Folders, existing, folders, json_lines, place, texts


@dataclass(frozen=True)
class Xm3600Images:
    """Pictures and their captions in one language of `captions.jsonl`.

    A line is an object `{"image/key": "…", "en": {"caption": ["…", …], …}, "zh": {"caption": […]}, …}`, its
    picture `<image/key>.jpg`. `json.captions` is the list of all captions in the language.

    Args:
        captions: the file.
        images: folder of the pictures, or several in which each is looked for.
        language: such as `en` or `zh`.

    Raises:
        ConfigError: there is no such file or folder.
        DataError: a line is no such object, or has no caption in the language.
    """

    captions: str
    images: Folders
    language: str

    def read(self) -> ImageSet:
        """Its pictures."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        roots = folders(self.images)
        files: list[ImageFile] = []
        records = []
        for where, values in json_lines(existing(self.captions, key="captions")):
            key, own = values.get("image/key"), values.get(self.language)
            if not isinstance(key, str):
                raise DataError(f"{where} has image/key={key!r}; expected a text")
            if not isinstance(own, dict):
                known = sorted(name for name, value in values.items() if isinstance(value, dict))
                raise DataError(
                    f"{where} ({key}) has nothing in language={self.language}; it has {', '.join(known)}"
                )
            captions = texts(own.get("caption"), where=f"{where} ({key}): caption of {self.language}")
            if not captions:
                raise DataError(f"{where} ({key}) has no caption in language={self.language}")
            files.append(ImageFile(place(f"{key}.jpg", roots)))
            records.append({"key": key, "json": {"captions": captions}})
        if not files:
            raise DataError(f"captions={self.captions} has no lines")
        return ImageSet(tuple(files), records)
