"""Pictures within a table of base64, and texts that name them: the layout of Chinese-CLIP, and of MUGE."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.data import ImageFile, ImageSet
from vlm.errors import DataError
from vlm.evaluation.image_sources.files import existing, folders, json_lines


@dataclass(frozen=True)
class ChineseClipImages:
    """Pictures of `<split>_imgs.tsv` and the texts of `<split>_texts.jsonl` that belong to them.

    A line of the first is an image id, a tab, and the image as base64; of the second an object `{"text_id",
    "text", "image_ids": [...]}`. A text may belong to several pictures, and a picture to none:
    `json.captions` is the list of a picture's texts, `json.text_ids` that of their ids. Retrieval of it has
    `merge_captions=true`, so that a text that several pictures have is one query.

    Args:
        root: folder of the two files.
        split: such as `valid`; the `test` split of MUGE says nothing of its images.

    Raises:
        ConfigError: there is no such folder or file.
        DataError: a line is no such line, or names an image that is not there; or no text names an image.
    """

    root: str
    split: str

    def read(self) -> ImageSet:
        """Its pictures, in the order of the table."""
        return self._images

    @cached_property
    def _images(self) -> ImageSet:
        (root,) = folders(self.root, key="root")
        images = existing(root / f"{self.split}_imgs.tsv", key="root")
        texts = existing(root / f"{self.split}_texts.jsonl", key="root")
        files = dict(_places(images))
        records: dict[str, dict[str, Any]] = {
            number: {"key": number, "json": {"captions": [], "text_ids": []}} for number in files
        }
        for where, values in json_lines(texts):
            for number in _image_ids(values, where):
                if number not in records:
                    raise DataError(f"{where} names the image {number}, which {images} does not have")
                own = records[number]["json"]
                own["captions"].append(values["text"].strip())
                own["text_ids"].append(values.get("text_id"))
        if not any(record["json"]["captions"] for record in records.values()):
            raise DataError(
                f"split={self.split}: no text of {texts} names an image; name a split whose texts do"
            )
        return ImageSet(tuple(files.values()), list(records.values()))


def _places(path: Path) -> Iterator[tuple[str, ImageFile]]:
    """The id of each image, and where in the table it stands."""
    start = 0
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            number, tab, image = line.rstrip(b"\r\n").partition(b"\t")
            if line.strip():
                if not tab or not number.strip() or not image:
                    raise DataError(
                        f"{path}: line {row} is {line[:40]!r}…; expected an image id, a tab and base64"
                    )
                first = start + len(number) + 1
                yield (
                    number.decode("utf-8", "replace").strip(),
                    ImageFile(str(path), base64=(first, len(image))),
                )
            start += len(line)


def _image_ids(values: dict[str, Any], where: str) -> list[str]:
    ids = values.get("image_ids", [])
    if not isinstance(values.get("text"), str) or not values["text"].strip():
        raise DataError(f"{where} has text={values.get('text')!r}; expected a text")
    if not isinstance(ids, list) or not all(isinstance(number, int | str) for number in ids):
        raise DataError(f"{where} has image_ids={ids!r:.80}; expected a list of image ids")
    return list(dict.fromkeys(map(str, ids)))
