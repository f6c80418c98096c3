"""A font that has Chinese characters, found on this machine."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

from vlm.errors import ConfigError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Where systems without fontconfig keep fonts, and what those with Chinese characters are called.
_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts"),
)
_NAMES = (
    *("NotoSansCJK", "NotoSansSC", "SourceHanSans", "wqy", "DroidSansFallback", "NotoSerifCJK", "uming"),
    *("ukai", "PingFang", "Hiragino Sans GB", "STHeiti", "msyh", "simsun", "simhei"),
)
_SAMPLE = "的一是红色"
_ABSENT = "\U0010fffd"  # of private use: every font draws its sign for what it lacks


@dataclass(frozen=True)
class _Candidate:
    path: str
    index: int
    family: str
    style: str

    @property
    def rank(self) -> tuple[bool, bool, bool, bool, str, int]:
        """Regular before bold, simplified Chinese before other forms, sans before serif."""
        family = self.family.lower()
        return (
            self.style.lower() not in ("regular", "book", "normal", ""),
            "mono" in family,
            "serif" in family or "song" in family,
            not (" sc" in family or "hans" in family),
            self.path,
            self.index,
        )


def find_font(size: int, *, path: str | None) -> tuple[Font, bool]:
    """A font, and whether it has Chinese characters.

    Args:
        size: in pixels.
        path: the file to take; None searches.

    Raises:
        ConfigError: the file is no font.
    """
    if path is not None:
        try:
            font = ImageFont.truetype(path, size)
        except OSError as error:
            raise ConfigError(f"font={path} cannot be used: {error}") from None
        return font, has_characters(font, _SAMPLE)
    for candidate in sorted((*_listed(), *_by_name()), key=lambda candidate: candidate.rank):
        try:
            font = ImageFont.truetype(candidate.path, size, index=candidate.index)
        except OSError:
            continue
        if has_characters(font, _SAMPLE):
            return font, True
    return ImageFont.load_default(size), False


def has_characters(font: Font, text: str) -> bool:
    """Whether a font has a picture of every character."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return False
    absent = bytes(font.getmask(_ABSENT))
    return all(bytes(font.getmask(character)) != absent for character in text if not character.isspace())


def _listed() -> Iterator[_Candidate]:
    """What fontconfig knows; its best match for a language may lack the characters, its list does not."""
    if shutil.which("fc-list") is None:
        return
    form = "%{file}\t%{index}\t%{family[0]}\t%{style[0]}\n"
    done = subprocess.run(["fc-list", "-f", form, ":lang=zh"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        fields = line.split("\t")
        if len(fields) == 4 and fields[1].isdecimal():
            yield _Candidate(fields[0], int(fields[1]) & 0xFFFF, fields[2], fields[3])


def _by_name() -> Iterator[_Candidate]:
    for folder in map(os.path.expanduser, _FOLDERS):
        for path in sorted(Path(folder).rglob("*.[to]t[cf]")):
            if any(path.name.lower().startswith(name.lower()) for name in _NAMES):
                yield _Candidate(str(path), 0, path.stem, "Bold" if "bold" in path.stem.lower() else "")
