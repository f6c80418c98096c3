"""The words of captions, as scores compare them."""

import re
import unicodedata
from typing import Literal

Language = Literal["en", "zh"]

_ENDING = r"n't|'(?:s|re|ve|ll|d|m)"
_SPLIT = re.compile(rf"(?<=[^\W\d_])(?=(?:{_ENDING})\b)|(?<=\bcan)(?=not\b)")
_NUMBER = r"\d+(?:[.,:]\d+)+"
_ENGLISH = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # u.s.
    r"|(?:mr|mrs|ms|dr|st|jr|sr|vs|etc)\."
    rf"|(?:{_ENDING})\b"
    rf"|(?:{_NUMBER}|[^\W_]+)(?:[-/'&][^\W_]+)*"
    r"|[$&%#@]"
)
_HAN_AND_KANA = r"\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE = re.compile(rf"[{_HAN_AND_KANA}]|{_NUMBER}|[^\W_{_HAN_AND_KANA}]+")


def words_of(caption: str, *, language: Language) -> tuple[str, ...]:
    """The words of a caption, in lower case and without punctuation.

    English is split as by the Penn Treebank tokenizer of coco-caption: `don't` is `do n't`, `man's` is
    `man 's`, and words joined by a hyphen are one. Of Chinese each character is a word, Latin words and
    numbers within it stay whole.
    """
    if language == "zh":
        return tuple(_CHINESE.findall(unicodedata.normalize("NFKC", caption).lower()))
    text = caption.lower().replace("’", "'")
    return tuple(_ENGLISH.findall(_SPLIT.sub(" ", text)))
