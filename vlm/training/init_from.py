"""A new run that starts from the weights of a checkpoint: at step 0, with a new optimizer."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer
from vlm.errors import ConfigError
from vlm.inference import (
    check_buildable,
    latest_checkpoint,
    read_description,
    read_tokenizer,
    read_weights,
)
from vlm.inference.contradictions import differences
from vlm.models import DualEncoder, ModelSpec, described
from vlm.models.activation import activations
from vlm.models.positions import resized_grid, resized_row
from vlm.models.state_dict import require_fit, table

log = logging.getLogger(__name__)

IMAGE_POSITIONS = "image.trunk.pos_embed"
TEXT_POSITIONS = "text.positional_embedding"
_PARTS = {
    "text": ("text.", "text_projection."),
    "text_decoder": ("text_decoder.",),
    "image_decoder": ("image_decoder.",),
}
"""What a model may lack, by its key, and how the names of its weights begin."""
# Of the two sizes only the positional embeddings depend, which are compared as such.
_FREE = (
    "model.init_logit_scale",
    "model.init_logit_bias",
    "model.image.image_size",
    "model.text.context_length",
    "model.text.name",
)
# Compared as built: an activation has several spellings.
_ACTIVATION = ("model.image.options.act_layer", "model.text.activation")


class InitFrom:
    """The last checkpoint of a run, or a checkpoint, as the beginning of a new run.

    Args:
        path: `init_from` of the configuration.
        resize_positions: whether positional embeddings of another size may be resized.

    Raises:
        CheckpointError: there is no checkpoint, or its description cannot be understood.
    """

    def __init__(self, path: str | Path, *, resize_positions: bool) -> None:
        self.checkpoint = latest_checkpoint(path)
        self._description = read_description(self.checkpoint)
        self._resize_positions = resize_positions

    @property
    def has_text(self) -> bool:
        """Whether the checkpoint has a text tower; else one that is asked for starts anew."""
        return self._description.model.text is not None

    def tokenizer(self, context_length: int) -> Tokenizer:
        """The checkpoint's tokenizer: its embeddings mean nothing to another one."""
        return read_tokenizer(self.checkpoint).with_context_length(context_length)

    def check(self, spec: ModelSpec, preprocess: Preprocess) -> None:
        """Compare a configured model with the checkpoint, without building either.

        Raises:
            ConfigError: they differ in what training from these weights cannot change; both values are named.
            CheckpointError: the weights do not fit the model.
        """
        check_buildable(self.checkpoint)
        own = described(spec)
        rows = self._contradictions(own)
        if rows:
            listed = table(("key", "configuration", "checkpoint"), rows)
            raise ConfigError(
                f"init_from={self.checkpoint} was trained as another model; set the keys as it has them:\n"
                f"{listed}"
            )
        self._fitted(own)
        before = self._description.preprocess.to_mapping() | {"image_size": preprocess.image_size}
        for key, now, then in differences(preprocess.to_mapping(), before, key="data.preprocess"):
            log.warning("%s=%s, but the weights of init_from were trained with %s", key, now, then)

    def load_into(self, model: DualEncoder) -> None:
        """Replace the weights of `model` by those of the checkpoint.

        Raises:
            ConfigError: positional embeddings differ in size, and nobody asked to resize them.
            CheckpointError: the weights do not fit the model.
        """
        model.load_state_dict(self._fitted(model))

    def _contradictions(self, own: DualEncoder) -> list[tuple[str, object, object]]:
        then = described(self._description.model)
        rows = [
            (f"activation of the {tower} tower", activations(mine), activations(theirs))
            for (tower, (mine, _)), (theirs, _) in zip(
                own.towers().items(), then.towers().values(), strict=False
            )
            if activations(mine) != activations(theirs)
        ]
        found = differences(_comparable(own.spec), _comparable(then.spec))
        alone = tuple(f"model.{part}" for part in _PARTS if self._in_one_alone(part, own.spec))
        found = [row for row in found if not _is_in(row.key, alone)]
        return rows + [
            row for row in found if not row[0].startswith(_FREE + _ACTIVATION) and not _drops(row[0])
        ]

    def _fitted(self, model: DualEncoder) -> dict[str, Tensor]:
        own, weights = model.state_dict(), read_weights(self.checkpoint)
        # Which loss comes now decides whether there is a bias, not which came before.
        if model.logit_bias is None:
            weights.pop("logit_bias", None)
        else:
            weights.setdefault("logit_bias", own["logit_bias"])
        # A tower or a decoder that only one of them has: left behind, or started anew.
        for part, names in _PARTS.items():
            if self._in_one_alone(part, model.spec):
                weights = {name: value for name, value in weights.items() if not name.startswith(names)}
                weights |= {name: value for name, value in own.items() if name.startswith(names)}
        self._fit_positions(own, weights, model)
        require_fit(own, weights, where=str(self.checkpoint))
        return weights

    def _in_one_alone(self, part: str, spec: ModelSpec) -> bool:
        return (getattr(spec, part) is None) != (getattr(self._description.model, part) is None)

    def _fit_positions(
        self, own: Mapping[str, Tensor], weights: dict[str, Tensor], model: DualEncoder
    ) -> None:
        for name, key in (
            (IMAGE_POSITIONS, "model.image.image_size"),
            (TEXT_POSITIONS, "model.text.context_length"),
        ):
            if name not in own or name not in weights or own[name].shape == weights[name].shape:
                continue
            resized = _resized(name, weights[name], own[name], model)
            if resized is None or resized.shape != own[name].shape:
                continue  # the table of what does not fit names it
            if not self._resize_positions:
                raise ConfigError(
                    f"{key} needs positional embeddings of shape {tuple(own[name].shape)}, those of "
                    f"init_from={self.checkpoint} are {tuple(weights[name].shape)}; set {key} as the "
                    "checkpoint has it, or resize_positions=true"
                )
            log.info("%s resized from %s to %s", name, tuple(weights[name].shape), tuple(own[name].shape))
            weights[name] = resized


def _resized(name: str, positions: Tensor, own: Tensor, model: DualEncoder) -> Tensor | None:
    if name == TEXT_POSITIONS:
        # A class token's position, the last, stays that of the class token.
        last = int(getattr(model.text, "class_embedding", None) is not None)
        tokens = resized_row(positions[: len(positions) - last], length=len(own) - last)
        return torch.cat([tokens, positions[len(positions) - last :]])
    trunk = model.image.trunk
    prefix = int(getattr(trunk, "num_prefix_tokens", 0))
    return resized_grid(positions, length=own.shape[1], num_prefix_tokens=prefix)


def _comparable(spec: ModelSpec) -> dict[str, object]:
    """A description without what names only where weights came from, or spells an activation."""
    values = spec.to_mapping()
    values["image"]["name"] = spec.image.name.partition(".")[0].replace("_quickgelu_", "_")
    # Rows are filled up to the context length there, so it is part of what is computed.
    if spec.text is not None and values["text"].get("pooling") == "last":
        values["text"]["filled_to"] = spec.text.context_length
    return values


def _is_in(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def _drops(key: str) -> bool:
    """Whether a key is a dropout rate, which training is free to choose."""
    return "drop" in key.rpartition(".")[2]
