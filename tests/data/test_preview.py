import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from small_shards import image_bytes, sample, write_shards, write_tar

from vlm.data.tools import preview as preview_module
from vlm.data.tools.fonts import find_font, has_characters
from vlm.data.tools.preview import Preview, _wrap
from vlm.errors import ConfigError


def preview(folder: Path, **changes) -> Preview:
    values = {
        "shards": f"{folder}/*.tar",
        "captions": "txt",
        "out": str(folder / "sheet.png"),
        "num_samples": 6,
        "columns": 3,
        "image_size": 64,
        "seed": 0,
        "font": None,
    }
    return Preview(**{**values, **changes})


def test_images_stand_in_rows_in_their_colours(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    images = {str(n): {"png": image_bytes(c, size=(64, 64)), "txt": b"a"} for n, c in enumerate(colours)}
    write_tar(tmp_path / "0.tar", images)
    assert preview(tmp_path, columns=2).run() == 4
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == 2 * (64 + 8) + 8
    rows = [sheet.getpixel((x, 40)) for x in (40, 112)]
    assert rows == colours[:2]
    pixels = np.asarray(sheet)
    assert all((pixels == colour).all(axis=2).sum() == 64 * 64 for colour in colours)


def test_captions_are_written_under_the_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"0": {"png": image_bytes((0, 0, 0), size=(64, 64)), "txt": b"a caption"}})
    preview(tmp_path).run()
    with_caption = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    preview(tmp_path, captions="json.none").run()
    without = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert (with_caption[76:] < 80).sum() > 50
    assert with_caption.shape != without.shape or (with_caption != without).any()


def test_broken_samples_are_shown_as_such(tmp_path: Path) -> None:
    change = {
        "000001": {"png": b"", "txt": b"x"},
        "000002": {"txt": b"x"},
        "000003": {"png": b"x", "json": b"{"},
    }
    write_shards(tmp_path, [6], change=change)
    assert preview(tmp_path).run() == 6
    red = (np.asarray(Image.open(tmp_path / "sheet.png")) == (180, 0, 0)).all(axis=2)
    assert red.sum() > 3 * 64


def test_the_seed_chooses_the_samples(tmp_path: Path) -> None:
    write_shards(tmp_path, [20, 20])
    sheets = []
    for seed in (0, 0, 1):
        preview(tmp_path, seed=seed).run()
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_transparent_and_sixteen_bit_images_are_drawn(tmp_path: Path) -> None:
    images = {
        "0": image_bytes((255, 0, 0, 0), mode="RGBA"),
        "1": image_bytes(300, mode="I;16"),
        "2": image_bytes(1, mode="1"),
        "3": image_bytes((1, 2, 3, 4), mode="CMYK", kind="JPEG"),
        "4": image_bytes((5, 5, 5), size=(900, 20)),
        "5": image_bytes((5, 5, 5), size=(1, 900)),
    }
    write_tar(tmp_path / "0.tar", {key: {"png": data, "txt": b"x"} for key, data in images.items()})
    assert preview(tmp_path).run() == 6


def chinese_font():
    font, has_chinese = find_font(14, path=None)
    if not has_chinese:
        pytest.skip("no font with Chinese characters")
    return font


def test_the_font_that_is_found_has_the_characters() -> None:
    font = chinese_font()
    masks = {bytes(font.getmask(character)) for character in "红绿蓝色的正方形"}
    assert len(masks) == 8
    assert has_characters(font, "红色 red")
    assert not has_characters(ImageFont.load_default(14), "红")


def test_a_machine_without_such_a_font_says_which_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preview_module, "find_font", lambda size, path: (ImageFont.load_default(size), False))
    write_shards(tmp_path, [3])
    with caplog.at_level(logging.WARNING):
        preview(tmp_path).run()
        assert not caplog.text  # English needs none
        preview(tmp_path, captions="json.caption_zh").run()
    assert "fonts-noto-cjk" in caplog.text


def test_no_fontconfig_and_no_fonts_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("vlm.data.tools.fonts._FOLDERS", ())
    assert find_font(14, path=None)[1] is False


@pytest.mark.parametrize(
    "text",
    [
        "one two three four five six seven",
        "红色的正方形在蓝色的圆形左边，都很大",
        "a" * 90,
        "red 红色 square 正方形 " * 3,
    ],
)
def test_lines_keep_to_the_width_and_lose_nothing(text: str) -> None:
    font = chinese_font()
    lines = list(_wrap(text, font, width=100))
    assert all(font.getlength(line.rstrip("…")) <= 100 for line in lines)
    shown = "".join(lines).rstrip("…").replace(" ", "")
    assert text.replace(" ", "").startswith(shown)
    assert len(lines) == 4 or shown == text.replace(" ", "")


def test_words_are_not_cut_where_they_fit() -> None:
    font = chinese_font()
    lines = list(_wrap("three words here", font, width=int(font.getlength("three words")) + 1))
    assert lines == ["three words", "here"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"0": sample(0)})
    with pytest.raises(ConfigError, match="columns=0"):
        preview(tmp_path, columns=0)
    with pytest.raises(ConfigError, match=r"font=.*none\.ttf cannot be used"):
        preview(tmp_path, font=str(tmp_path / "none.ttf")).run()
