"""From an entry of a benchmark to cases: which field holds what."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.errors import ConfigError
from vlm.schema import unknown_key_message

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""

CAPTIONS = ("true_captions", "false_captions", "each_false_caption", "options", "caption", "label")
TEXTS = ("image", "category", "group")
NAMES = (*TEXTS, "box", *CAPTIONS)

OWN_NAMES = ("image", "true_captions", "false_captions", "category", "group", "box")
"""Of the format that is documented here."""

_FIELD = re.compile(r"\{([\w.]+)(?::0(\d{1,3}))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A picture with captions that are true of it and captions that are not."""

    image: str
    """A file below the root; empty where the picture is a sample of shards."""
    true: tuple[str, ...]
    false: tuple[str, ...]
    category: str | None = None
    group: str | None = None
    box: Box | None = None


class FieldError(ValueError):
    """An entry does not have what the mapping promises."""


@dataclass(frozen=True, slots=True)
class CaseFields:
    """A mapping from what a case needs to the fields of an entry.

    `image`, `category` and `group` are texts in which `{field}` stands for a value (`{id:012}` pads a number
    by zeros). All others name fields, or lists of them: `true_captions` and `false_captions`, texts or lists
    of texts; `each_false_caption`, of which each makes a case and which may be absent; `options`, a list with
    the true caption first; or one `caption` and the `label` that says whether it is true. `box` is a field
    with left, top, width, height, or four fields. A field within others is `json.caption`, an item of a list
    `attributes.0`.

    Raises:
        ConfigError: a name that is none of these, or no captions.
    """

    names: Mapping[str, Any]
    key: str

    def __post_init__(self) -> None:
        for name, value in self.names.items():
            if name not in NAMES:
                raise ConfigError(unknown_key_message(str(name), NAMES, where=self.key))
            if name in TEXTS and not isinstance(value, str):
                raise ConfigError(f"{self.key}.{name}={value!r} has to be a text, such as '{{filename}}'")
            if name not in TEXTS and not _is_names(value):
                raise ConfigError(f"{self.key}.{name}={value!r} has to name a field, or a list of fields")
        if not set(CAPTIONS) & self.names.keys():
            raise ConfigError(f"{self.key} names no captions; set one of {', '.join(CAPTIONS)}")
        if ("caption" in self.names) != ("label" in self.names):
            raise ConfigError(f"{self.key}: caption and label go together; set both")

    def cases(self, entry: Any) -> list[Case]:
        """The cases of an entry; several where each false caption makes one.

        Raises:
            FieldError: the entry lacks a field, or holds something else there.
        """
        texts = {name: self._text(entry, name) for name in TEXTS}
        box = self._box(entry)
        return [
            Case(
                image=texts["image"] or "",
                true=true,
                false=false,
                category=texts["category"],
                group=texts["group"],
                box=box,
            )
            for true, false in self._captions(entry)
        ]

    def _captions(self, entry: Any) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        true, false = self._texts(entry, "true_captions"), self._texts(entry, "false_captions")
        if "options" in self.names:
            options = self._texts(entry, "options")
            true, false = true + options[:1], false + options[1:]
        if "label" in self.names:
            caption = self._texts(entry, "caption")
            true, false = (true + caption, false) if self._label(entry) else (true, false + caption)
        if "each_false_caption" in self.names:
            each = self._texts(entry, "each_false_caption", required=False)
            return [(_some(true), (*false, caption)) for caption in each]
        return [(true, false)] if true or false else [(_some(true), false)]

    def _texts(self, entry: Any, name: str, *, required: bool = True) -> tuple[str, ...]:
        """Every caption in the fields that `name` stands for; of options none is empty."""
        found: list[str] = []
        for path in _listed(self.names.get(name, [])):
            value = find(entry, path)
            if value is None and not required:
                continue
            values = value if isinstance(value, list) else [_present(value, entry, path)]
            if not all(isinstance(text, str) for text in values):
                raise FieldError(f"has {path}={_short(value)}, not a text or a list of texts")
            captions = [_in_one_line(text) for text in values]
            if name == "options" and not (captions and all(captions)):
                raise FieldError(
                    f"has {path}={_short(value)} with an empty option; the first has to be the true one"
                )
            found += filter(None, captions)
        return tuple(found)

    def _label(self, entry: Any) -> bool:
        path = _listed(self.names["label"])[0]
        label = find(entry, path)
        if not isinstance(label, int) or label not in (0, 1):  # true and false are 1 and 0
            raise FieldError(f"has {path}={_short(label)}, not true or false")
        return bool(label)

    def _text(self, entry: Any, name: str) -> str | None:
        pattern = self.names.get(name)
        if pattern is None:
            return None

        def filled(match: re.Match[str]) -> str:
            value = _present(find(entry, match[1]), entry, match[1])
            if not isinstance(value, str | int | float):
                raise FieldError(f"has {match[1]}={_short(value)}, not a text or a number")
            return str(value).zfill(int(match[2] or 0))

        return _FIELD.sub(filled, pattern)

    def _box(self, entry: Any) -> Box | None:
        paths = _listed(self.names.get("box", []))
        if not paths:
            return None
        values = [_present(find(entry, path), entry, path) for path in paths]
        sides = values[0] if len(values) == 1 else values
        numbers = isinstance(sides, list) and all(
            isinstance(side, int | float) and math.isfinite(side) for side in sides
        )
        if not numbers or len(sides) != 4 or min(sides[2:]) <= 0:
            raise FieldError(f"has the box {_short(sides)}, not left, top, width and height in pixels")
        left, top, width, height = map(float, sides)
        return left, top, width, height


def own_fields(entry: Any, key: str) -> CaseFields:
    """The fields of an entry in the documented format.

    Raises:
        FieldError: it has others.
    """
    if not isinstance(entry, Mapping):
        raise FieldError(f"is {_short(entry)}, not an object")
    for name in entry:
        if name not in OWN_NAMES:
            raise FieldError(
                f"has the field {name!r}, which the format of cases does not know ({', '.join(OWN_NAMES)}); "
                f"for another format say by {key} which field holds what"
            )
    if not {"true_captions", "false_captions"} & entry.keys():
        raise FieldError("has neither true_captions nor false_captions")
    present = {name for name in OWN_NAMES if entry.get(name) is not None} | {"image"}
    return CaseFields({name: f"{{{name}}}" if name in TEXTS else name for name in sorted(present)}, key)


def find(entry: Any, path: str) -> Any | None:
    """The value at a dotted path, in which a number is a place in a list; None where there is none."""
    value = entry
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _present(value: Any | None, entry: Any, path: str) -> Any:
    if value is None:
        has = f" (it has {', '.join(map(str, entry))})" if isinstance(entry, Mapping) else ""
        raise FieldError(f"has no {path!r}{has}")
    return value


def _in_one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _some(captions: tuple[str, ...]) -> tuple[str, ...]:
    if not captions:
        raise FieldError("has no caption")
    return captions


def _is_names(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name for name in names)


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
