"""The description of a model as plain data: read from yaml, stored in every checkpoint, enough to rebuild it.

None of the fields has a default: the defaults stand in `configs/model/*.yaml`.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from vlm.errors import ConfigError
from vlm.schema import from_mapping

T = TypeVar("T")
Activation: TypeAlias = Literal["gelu", "quick_gelu", "gelu_tanh"]

_RESERVED_IMAGE_OPTIONS = frozenset(
    {"model_name", "pretrained", "pretrained_cfg", "checkpoint_path", "num_classes", "img_size", "in_chans"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTowerSpec:
    """A timm model without its classifier, and how its pixels are normalised."""

    name: str
    """As `timm.list_models()` has it; a tag after a dot picks the weights when `pretrained`."""
    image_size: int
    mean: tuple[float, float, float]
    """Of red, green and blue in [0, 1]."""
    std: tuple[float, float, float]
    pretrained: bool | str
    """true: start from timm's weights, downloaded when first used; a text: from this file or folder."""
    options: Mapping[str, Any]
    """Further arguments of `timm.create_model`: patch_size, depth, drop_path_rate and the like."""

    def __post_init__(self) -> None:
        _require_positive("model.image.image_size", self.image_size)
        if min(self.std) <= 0:
            raise ConfigError(f"model.image.std={list(self.std)} must be positive")
        for name in sorted(_RESERVED_IMAGE_OPTIONS & self.options.keys()):
            raise ConfigError(
                f"model.image.options.{name} is set by the project itself; "
                "use model.image.name, image_size and pretrained"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalTextSpec:
    """CLIP's text tower: a causal pre-norm transformer, pooled at the end-of-text token."""

    kind: Literal["causal"] = "causal"
    context_length: int
    vocab_size: int | None
    """None: the tokenizer's, filled in by `ModelSpec.with_tokenizer`; the same holds for `eot_id`."""
    eot_id: int | None
    width: int
    layers: int
    heads: int
    activation: Activation
    pooling: Literal["eot", "class", "class_open_clip"] = "eot"
    """Where the vector is read: at the end of text, or at a class token behind it that sees all of it.

    `class_open_clip` is how open_clip's CoCa weights were trained: that token sees one place behind the text,
    and not itself.
    """

    def __post_init__(self) -> None:
        _check_tokens(self)
        _check_transformer(self, "model.text")


@dataclass(frozen=True, slots=True, kw_only=True)
class BagOfWordsSpec:
    """A text tower that cannot see the order of words: the control of tests of word order."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    context_length: int
    vocab_size: int | None
    eot_id: int | None
    width: int

    def __post_init__(self) -> None:
        _check_tokens(self)
        _require_positive("model.text.width", self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersTextSpec:
    """An encoder of `transformers`."""

    kind: Literal["transformers"] = "transformers"
    name: str
    """Folder or hub name that the configuration, and with `pretrained` the weights, come from.

    Not read when `options` has a `model_type`: the options are then the whole configuration.
    """
    pretrained: bool
    pooling: Literal["eot", "cls", "mean", "last"]
    """The vector of the end-of-text token, of the first token, or the mean over the text's tokens.

    `last` is SigLIP's: rows are filled with `options.pad_token_id` up to the context length, the encoder
    reads all of it, and the last position goes through the encoder's own head.
    """
    context_length: int
    vocab_size: int | None
    eot_id: int | None
    options: Mapping[str, Any]
    """Keys of the encoder's own configuration, over those of `name`."""

    def __post_init__(self) -> None:
        _check_tokens(self)
        if self.pretrained and "model_type" in self.options:
            raise ConfigError(
                "model.text.pretrained=true takes its configuration from model.text.name; "
                "remove model.text.options.model_type or set model.text.pretrained=false"
            )


TextTowerSpec: TypeAlias = CausalTextSpec | BagOfWordsSpec | TransformersTextSpec

_TEXT_SPECS: Mapping[str, type[TextTowerSpec]] = {
    "causal": CausalTextSpec,
    "bag_of_words": BagOfWordsSpec,
    "transformers": TransformersTextSpec,
}


DECODERS = ("text_decoder", "image_decoder")
"""Keys of the parts that only some objectives train, and no evaluation of vectors needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolerSpec:
    """Attention of learned queries to an image's tokens, in place of the tower's own pooling.

    Source: arXiv:2205.01917, section 3.2.
    """

    kind: Literal["shared", "parallel", "cascade"]
    """The vector is the first of the `queries`, whose others are what captions are read from (open_clip);
    or of a query of its own, over the same tokens or over what the `queries` give."""
    queries: int
    heads: int

    def __post_init__(self) -> None:
        _require_positive("model.image_pooler.heads", self.heads)
        least = 2 if self.kind == "shared" else 1
        if self.queries < least:
            raise ConfigError(f"model.image_pooler.queries={self.queries} must be at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDecoderSpec:
    """Causal blocks over the states of the text tower, as wide as these, that look at the image: captions.

    Source: arXiv:2205.01917, section 3.2.
    """

    layers: int
    heads: int
    activation: Activation

    def __post_init__(self) -> None:
        _check_transformer(self, "model.text_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDecoderSpec:
    """Blocks over all places of an image, of which some are hidden, that look at the text: pixels.

    Source: arXiv:2401.02137, section 3.3.
    """

    width: int
    layers: int
    heads: int
    activation: Activation

    def __post_init__(self) -> None:
        _check_transformer(self, "model.image_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Two towers and the space that they meet in; or an image tower alone, and the space that it maps to."""

    embed_dim: int
    init_logit_scale: float
    """Multiplier on the cosine similarity before the first step; CLIP starts at 1 / 0.07."""
    init_logit_bias: float | None = None
    """What is added to it, for the sigmoid loss alone; SigLIP starts at -10."""
    image: ImageTowerSpec
    text: TextTowerSpec | None
    image_pooler: PoolerSpec | None = None
    text_decoder: TextDecoderSpec | None = None
    image_decoder: ImageDecoderSpec | None = None

    @property
    def text_tower(self) -> TextTowerSpec:
        """`text`, for what cannot do without.

        Raises:
            ConfigError: there is none.
        """
        if self.text is None:
            raise ConfigError("the model has no text tower (model.text=null): it knows images alone")
        return self.text

    def __post_init__(self) -> None:
        _require_positive("model.embed_dim", self.embed_dim)
        _require_positive("model.init_logit_scale", self.init_logit_scale)
        if self.image_pooler is not None and self.embed_dim % self.image_pooler.heads:
            raise ConfigError(
                f"model.image_pooler.heads={self.image_pooler.heads} does not divide model.embed_dim="
                f"{self.embed_dim}; change one"
            )
        if self.text_decoder is None and self.image_pooler and self.image_pooler.kind == "parallel":
            raise ConfigError(
                "model.image_pooler.kind=parallel has queries for captions alone, but model.text_decoder="
                "null; take another kind"
            )
        for name in DECODERS:
            if getattr(self, name) is not None and not isinstance(self.text, CausalTextSpec):
                raise ConfigError(
                    f"model.{name} reads a text from its beginning, so that model.text.kind must be causal; "
                    f"set it, or model.{name}=null"
                )
        if self.text_decoder and isinstance(self.text, CausalTextSpec):
            width, heads = self.text.width, self.text_decoder.heads
            if width % heads:
                raise ConfigError(
                    f"model.text_decoder.heads={heads} does not divide model.text.width={width}, which is "
                    "the decoder's too; change one"
                )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, key: str = "model") -> "ModelSpec":
        """Parse plain data that has exactly the keys of the spec.

        Args:
            key: where `values` stands, for messages.

        Raises:
            ConfigError: an unknown or missing key, or a value out of range.
        """
        parsed = dict(_require_mapping(key, values))
        if "image" in parsed:
            parsed["image"] = _parse(ImageTowerSpec, parsed["image"], key=f"{key}.image")
        if parsed.get("text") is not None:
            parsed["text"] = _parse(
                _text_spec(parsed["text"], f"{key}.text"), parsed["text"], key=f"{key}.text"
            )
        for name, kind in _PARTS.items():
            if parsed.get(name) is not None:
                parsed[name] = _parse(kind, parsed[name], key=f"{key}.{name}")
        return _parse(cls, parsed, key=key)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for json or yaml; `from_mapping` gives an equal spec back."""
        values = dataclasses.asdict(self)
        values["image"] |= {"mean": list(self.image.mean), "std": list(self.image.std)}
        return values

    def without_pretrained(self) -> "ModelSpec":
        """The same model, newly initialised."""
        text = self.text
        if isinstance(text, TransformersTextSpec):
            text = dataclasses.replace(text, pretrained=False)
        return dataclasses.replace(self, image=dataclasses.replace(self.image, pretrained=False), text=text)

    def with_tokenizer(self, *, vocab_size: int, eot_id: int) -> "ModelSpec":
        """The same spec with what was left to the tokenizer filled in.

        Raises:
            ConfigError: a value that is set does not fit the tokenizer, or there is no text tower.
        """
        text = self.text_tower
        if text.vocab_size is not None and text.vocab_size < vocab_size:
            raise ConfigError(
                f"model.text.vocab_size={text.vocab_size} is smaller than the tokenizer's {vocab_size}; "
                "set it to null to take the tokenizer's"
            )
        if text.eot_id is not None and text.eot_id != eot_id:
            raise ConfigError(
                f"model.text.eot_id={text.eot_id} is not the tokenizer's end of text, {eot_id}; "
                "set it to null to take the tokenizer's"
            )
        filled = dataclasses.replace(text, vocab_size=text.vocab_size or vocab_size, eot_id=eot_id)
        return dataclasses.replace(self, text=filled)


_PARTS: Mapping[str, type[Any]] = {
    "image_pooler": PoolerSpec,
    "text_decoder": TextDecoderSpec,
    "image_decoder": ImageDecoderSpec,
}


def _text_spec(values: Any, key: str) -> type[TextTowerSpec]:
    kind = _require_mapping(key, values).get("kind")
    if not isinstance(kind, str) or kind not in _TEXT_SPECS:
        raise ConfigError(f"{key}.kind={kind!r} must be one of {', '.join(_TEXT_SPECS)}")
    return _TEXT_SPECS[kind]


def _parse(cls: type[T], values: Any, *, key: str) -> T:
    """`vlm.schema.from_mapping` after a check of types, since yaml has neither tuples nor types."""
    parsed = dict(_require_mapping(key, values))
    for name, hint in typing.get_type_hints(cls).items():
        if name in parsed:
            parsed[name] = _converted(parsed[name], hint)
            if not _fits(parsed[name], hint):
                raise ConfigError(f"{key}.{name}={values[name]!r} must be {_described(hint)}")
    return from_mapping(cls, parsed, key=key)


def _converted(value: Any, hint: Any) -> Any:
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_converted(item, float) for item in value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in parts
    if origin is types.UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        same_length = isinstance(value, tuple) and len(value) == len(parts)
        return same_length and all(map(_fits, value, parts))
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is hint  # not isinstance: true and false are no numbers


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    plain = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(_described, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "three numbers, for red, green and blue"
    return plain.get(hint, "a mapping")


def _require_mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value!r} must be a mapping of keys to values")
    return value


def _check_tokens(text: TextTowerSpec) -> None:
    _require_positive("model.text.context_length", text.context_length)
    if text.vocab_size is not None:
        _require_positive("model.text.vocab_size", text.vocab_size)
    if text.eot_id is not None and text.eot_id < 0:
        raise ConfigError(f"model.text.eot_id={text.eot_id} must be a token id or null")


def _check_transformer(spec: "CausalTextSpec | TextDecoderSpec | ImageDecoderSpec", key: str) -> None:
    for name in ("width", "layers", "heads"):
        if hasattr(spec, name):
            _require_positive(f"{key}.{name}", getattr(spec, name))
    if not isinstance(spec, TextDecoderSpec) and spec.width % spec.heads:
        raise ConfigError(f"{key}.heads={spec.heads} does not divide {key}.width={spec.width}; change one")


def _require_positive(key: str, value: int | float) -> None:
    if value <= 0:
        raise ConfigError(f"{key}={value} must be above 0")
