"""XTD: a thousand pictures of COCO with a caption each in several languages."""

from dataclasses import dataclass
from functools import cached_property

from vlm.data import ImageFile, ImageSet
from vlm.errors import DataError
from vlm.evaluation.image_sources.files import Folders, existing, folders, lines_of, place


@dataclass(frozen=True)
class XtdImages:
    """Names of pictures and captions in two files of text, line by line.

    Args:
        names: file with the name of a picture a line, `test_image_names.txt`.
        captions: file with its caption on the same line, such as `test_1kcaptions_zh.txt`.
        images: folder of the pictures, or several in which each is looked for.

    Raises:
        ConfigError: there is no such file or folder.
        DataError: the files do not have as many lines as each other.
    """

    names: str
    captions: str
    images: Folders

    def read(self) -> ImageSet:
        """Its pictures; `json.captions` is a list of one caption."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        roots = folders(self.images)
        names, captions = (
            [line.strip() for _, line in lines_of(existing(path, key=key))]
            for path, key in ((self.names, "names"), (self.captions, "captions"))
        )
        if len(names) != len(captions) or not names:
            raise DataError(
                f"names={self.names} has {len(names)} lines, captions={self.captions} {len(captions)}; "
                "each picture has a line in both"
            )
        return ImageSet(
            tuple(ImageFile(place(name, roots)) for name in names),
            [
                {"key": name, "json": {"captions": [caption]}}
                for name, caption in zip(names, captions, strict=True)
            ],
        )
