"""One HTML page of pictures and the captions that were written for them, complete in itself."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from vlm.data import ImageFile, ShardSet, data_uri, read_images, thumbnail
from vlm.evaluation.evaluator import spread
from vlm.files import replacing, writing
from vlm.inference import CaptionLine

_SHOWN = 120
_SIDE = 256


def write_caption_page(
    path: Path, source: ShardSet | Sequence[ImageFile], lines: Sequence[CaptionLine], *, title: str
) -> None:
    """Write a page with pictures of `source` and their captions, at most 120 of them.

    Raises:
        OutputError: it cannot be written.
        DataError: a picture cannot be read any more.
    """
    readable = [line for line in lines if line.caption is not None]
    shown = [readable[place] for place in spread(len(readable), wanted=_SHOWN)]
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(files("vlm.evaluation").joinpath("caption_page.html.j2").read_text(encoding="utf-8"))
        .render(
            title=title,
            written=len(readable),
            unreadable=len(lines) - len(readable),
            cards=list(zip(_pictures(source, [line.row for line in shown]), shown, strict=True)),
        )
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(page, encoding="utf-8")


def _pictures(source: ShardSet | Sequence[ImageFile], rows: Sequence[int]) -> list[str]:
    if isinstance(source, ShardSet):
        return [data_uri(thumbnail(image, side=_SIDE)) for image in read_images(source, rows)]
    return [data_uri(thumbnail(source[row].open(), side=_SIDE)) for row in rows]
