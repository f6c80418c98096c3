"""Tables of tiny pictures, to be packed into shards."""

import csv
import json
from pathlib import Path
from typing import Any

from small_shards import image_bytes

from vlm.data.tools.pack import Pack

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(number: int) -> tuple[str, bytes]:
    """An image of one of three kinds, no two alike, and its extension."""
    extension = list(KINDS)[number % 3]
    side = 8 + number % 40
    color = (number % 256, number // 256, 90)
    return extension, image_bytes(color, size=(side, side), kind=KINDS[extension])


def write_table(folder: Path, count: int, *, broken: dict[int, bytes | None] | None = None) -> Path:
    """A CSV beside its pictures; `broken` has other bytes for some of them, or None for no file."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "title_zh"])
        for number in range(count):
            extension, data = picture(number)
            content = (broken or {}).get(number, data)
            if content is not None:
                (pictures / f"{number}.{extension}").write_bytes(content)
            writer.writerow([f"pictures/{number}.{extension}", f"picture {number}, red", f"第{number}张图"])
    return folder / "table.csv"


def pack(source: Path, out: Path, **changes: Any) -> Pack:
    values = {
        "input": str(source),
        "out": str(out),
        "image": None,
        "caption": None,
        "root": None,
        "separator": None,
        "max_samples": 10,
        "max_mb": 100,
        "verify": "header",
        "max_skipped": 0.1,
        "workers": 1,
    }
    return Pack(**{**values, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with the records of packing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected_sample(number: int) -> dict[str, Any]:
    extension, data = picture(number)
    caption = f"picture {number}, red"
    row = {"filepath": f"pictures/{number}.{extension}", "title": caption, "title_zh": f"第{number}张图"}
    return {extension: data, "txt": caption.encode(), "json": json.dumps(row, ensure_ascii=False).encode()}
