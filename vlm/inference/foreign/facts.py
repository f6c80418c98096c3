"""What a model from elsewhere says of itself, and what the command adds where it says nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlm.data import Preprocess
from vlm.errors import CheckpointError, ConfigError
from vlm.models import Activation, ModelSpec

WHITE = (255, 255, 255)
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Given:
    """Keys of `vlm import` for what a source does not say; None leaves it to the source.

    A value that contradicts the source is refused.

    Args:
        model_config: open_clip's json of the model, for weights that lie without one.
        activation: of the MLPs of both towers.
        head_width: width of an attention head in both towers.
        mean: of red, green and blue in [0, 1]; `std` likewise.
        resize_mode: see `data.preprocess.resize_mode`; `interpolation` and `background` likewise.
        tokenizer_path: CLIP's merges, a `tokenizer.json`, or a folder of a transformers tokenizer.
    """

    model_config: str | None = None
    activation: Activation | None = None
    head_width: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    resize_mode: str | None = None
    interpolation: str | None = None
    background: Sequence[int] | None = None
    tokenizer_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A model from elsewhere in the terms of this project.

    Args:
        weights: by the names of `vlm.models`.
        spec: complete but for `text.eot_id`, which is the tokenizer's.
        eot_id: where the model reads a text's vector: at this id, at the "largest", or elsewhere ("any").
        pad_token: name of the padding token, where the text tower reads it.
    """

    kind: str
    weights: dict[str, Tensor]
    spec: ModelSpec
    preprocess: Preprocess
    eot_id: int | Literal["largest", "any"]
    pad_token: str | None


class Facts:
    """Values settled between a source and the keys; those that nobody gives are named together.

    Args:
        source: the path that is imported, for messages.
    """

    def __init__(self, source: Path, given: Given) -> None:
        self.source = source
        self.given = given
        self._missing: list[str] = []

    def settle(self, key: str, said: Any, *, of: str = "") -> Any:
        """The value of `key`: what the source says, else what was given.

        Args:
            said: None where the source does not say.
            of: the part of the model that the source speaks of, for the message.

        Raises:
            ConfigError: both say something, and not the same.
        """
        given = getattr(self.given, key)
        if said is None and given is None and key not in self._missing:
            self._missing.append(key)
        if said is None:
            return given
        if given is not None and not _same(given, said):
            what = f"{key} of the {of}" if of else key
            raise ConfigError(
                f"{key}={_plain(given)}, but {self.source} says that the {what} is {_plain(said)}; leave "
                f"{key} out: the weights work with that value alone"
            )
        return said

    def require_all(self, hint: str) -> None:
        """Raise `ConfigError` with every key that neither the source nor the command gave.

        Args:
            hint: what else would say it.
        """
        if self._missing:
            keys = ", ".join(self._missing)
            raise ConfigError(f"{self.source} does not say {keys}; set them by these keys, or {hint}")

    def preprocess(self, said: Mapping[str, Any], *, image_size: int) -> Preprocess:
        """From settled `resize_mode` and `interpolation`; the background is white where nobody says."""
        background = self.settle("background", said.get("background", self.given.background or WHITE))
        return Preprocess(
            image_size=image_size,
            background=background,
            resize_mode=said["resize_mode"],
            interpolation=said["interpolation"],
        )


def require_equal(said: Any, found: Any, *, what: str, source: Path) -> None:
    """Refuse a description that says `said` of weights whose shapes say `found`."""
    if said is not None and said != found:
        raise CheckpointError(f"{what} is {said} in the description of {source}, but {found} in its weights")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(abs(x - y) < _TOLERANCE for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
