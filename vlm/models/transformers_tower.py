"""Any encoder of `transformers` as a text tower. Imported only when one is asked for: it takes seconds."""

import dataclasses
from typing import Any, cast

import transformers
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vlm.errors import ConfigError
from vlm.models.spec import TransformersTextSpec
from vlm.models.text_tower import TextTower, at_end_of_text, mean_over_text
from vlm.schema import unknown_key_message

# Where and how a configuration was saved, not what it describes.
_INCIDENTAL = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})


class TransformersTower(TextTower):
    """An encoder of `transformers`, pooled to one vector.

    Raises:
        ConfigError: no such configuration or weights, an unknown option, too small a vocabulary or context.
    """

    def __init__(self, spec: TransformersTextSpec) -> None:
        config = _read_config(spec)
        if spec.pooling == "last" and not hasattr(config, "projection_size"):
            raise ConfigError(
                f"model.text.pooling=last reads the text encoder of SigLIP (siglip_text_model); "
                f"for {config.model_type} use eot, cls or mean"
            )
        resolved = dataclasses.replace(spec, pretrained=False, options=_plain(config))
        width = config.projection_size if spec.pooling == "last" else config.hidden_size
        super().__init__(resolved, width=int(width))
        _require_at_least(config, "vocab_size", self.vocab_size, "model.text.vocab_size")
        _require_at_least(config, "max_position_embeddings", spec.context_length, "model.text.context_length")
        self.pooling = spec.pooling
        self.encoder = _create(spec, config)
        # Of use to who generates; a block that is computed again would add its text to it twice.
        config.use_cache = False

    def forward(self, text: Int64[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        mask = self.read_mask(text)
        if self.pooling == "last":
            return cast(Tensor, self.encoder(input_ids=self._filled(text, mask)).pooler_output)
        hidden = self.encoder(input_ids=text, attention_mask=mask.long()).last_hidden_state
        if self.pooling == "cls":
            return cast(Tensor, hidden[:, 0])
        return at_end_of_text(hidden, mask) if self.pooling == "eot" else mean_over_text(hidden, mask)

    def _filled(self, text: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Int64[Tensor, "b context"]:
        """Rows with the encoder's padding behind their end of text, up to the context length."""
        padding = int(self.encoder.config.pad_token_id)  # type: ignore[union-attr, arg-type]
        filled = text.masked_fill(~mask, padding)
        return F.pad(filled, (0, self.spec.context_length - text.shape[1]), value=padding)


def _read_config(spec: TransformersTextSpec) -> Any:
    """The encoder's configuration, with `spec.options` over what is stored under `spec.name`."""
    stored: dict[str, Any] = {}
    if "model_type" not in spec.options:
        try:
            stored = _plain(transformers.AutoConfig.from_pretrained(spec.name))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.text.name={spec.name!r} has no transformers configuration: {_first_line(error)}"
            ) from error
    values = {**stored, **spec.options}
    model_type = values["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.text.options.model_type={model_type!r} is no model of transformers "
            f"{transformers.__version__}"
        )
    config_class = CONFIG_MAPPING[model_type]
    accepted = config_class().to_dict().keys() | config_class.attribute_map.keys()
    for name in spec.options:
        if name not in accepted:
            raise ConfigError(unknown_key_message(name, accepted, where="model.text.options"))
    try:
        return config_class.from_dict(values)
    except Exception as error:
        # Each configuration class checks its values with errors of its own.
        raise ConfigError(f"model.text.options: {_first_line(error)}") from error


def _plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.to_diff_dict()
    # Files on the hub carry keys that no class reads; rebuilding from them would be refused.
    known = type(config)().to_dict().keys() | type(config).attribute_map.keys()
    kept = {name: value for name, value in values.items() if name in known and name not in _INCIDENTAL}
    return {**kept, "model_type": config.model_type}


def _create(spec: TransformersTextSpec, config: Any) -> nn.Module:
    try:
        if spec.pretrained:
            encoder = _class(config).from_pretrained(spec.name, config=config, dtype="float32")
        else:
            made_by = _class(config)
            from_config = made_by._from_config if hasattr(made_by, "_from_config") else made_by.from_config
            encoder = from_config(config, dtype="float32")
    except Exception as error:
        # The architectures refuse values with whatever their layers raise.
        raise ConfigError(
            f"transformers cannot build model.text.name={spec.name!r} with "
            f"pretrained={str(spec.pretrained).lower()} and model.text.options={dict(spec.options)}: "
            f"{_first_line(error)}"
        ) from error
    for unused in ("pooler",) if spec.pooling == "last" else ("pooler", "head"):
        if getattr(encoder, unused, None) is not None:
            # Its weights would get no gradient, which data-parallel training refuses.
            setattr(encoder, unused, None)
    return cast(nn.Module, encoder.train())


def _class(config: Any) -> Any:
    """What builds the encoder of a configuration."""
    if type(config) is transformers.SiglipTextConfig:
        return transformers.SiglipTextModel  # in none of the lists below
    # Encoder-decoders such as T5 have a class of their encoder alone; the others only the general one.
    has_text_class = type(config) in transformers.AutoModelForTextEncoding._model_mapping
    return transformers.AutoModelForTextEncoding if has_text_class else transformers.AutoModel


def _require_at_least(config: Any, name: str, needed: int, what: str) -> None:
    found = getattr(config, name, None)
    if found is not None and found < needed:
        raise ConfigError(
            f"{name}={found} of the text encoder is less than {needed}, {what}; "
            f"set model.text.options.{name} (pretrained weights fix it)"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
