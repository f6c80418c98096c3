"""The checkpoint that is exported, as every format needs it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.data import Preprocess
from vlm.data.tokenizers import Tokenizer
from vlm.errors import ConfigError
from vlm.inference.checkpoint import (
    EMA,
    WEIGHTS,
    Description,
    latest_checkpoint,
    read_config,
    read_description,
    run_of,
)
from vlm.inference.load import Loaded, load
from vlm.models import DualEncoder, ModelSpec, build_model
from vlm.models.spec import DECODERS


class UnfitError(Exception):
    """A format has no place for a part of the model; the message names the part."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint, loaded.

    Args:
        name: of the run, or of the checkpoint's folder where it stands alone.
        weights: "model" or "ema".
        vectors: the model without its decoders, which no vector needs.
        left_out: keys of these decoders.
    """

    checkpoint: Path
    name: str
    weights: str
    description: Description
    config: dict[str, Any]
    loaded: Loaded
    vectors: DualEncoder
    left_out: tuple[str, ...]

    @property
    def spec(self) -> ModelSpec:
        """Of `vectors`."""
        return self.vectors.spec

    @property
    def preprocess(self) -> Preprocess:
        """What is done to a picture."""
        return self.loaded.preprocess

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the text tower.

        Raises:
            UnfitError: the model has none.
        """
        if self.loaded.tokenizer is None:
            raise UnfitError("the model has no text tower (model.text=null)")
        return self.loaded.tokenizer

    @property
    def sha256(self) -> str:
        """Of the file of weights."""
        return str(self.description.files[EMA if self.weights == "ema" else WEIGHTS]["sha256"])


def read_source(run: str, *, weights: str) -> Source:
    """Load a checkpoint, or the last of a run.

    Raises:
        ConfigError, CheckpointError: as `load` does.
    """
    if not Path(run).exists():
        raise ConfigError(f"run={run} does not exist; give a run folder or a checkpoint folder")
    checkpoint = latest_checkpoint(run).absolute()
    loaded = load(checkpoint, weights=weights)
    left_out = tuple(name for name in DECODERS if getattr(loaded.model.spec, name) is not None)
    return Source(
        checkpoint=checkpoint,
        name=run_of(checkpoint).name,
        weights=weights,
        description=read_description(checkpoint),
        config=read_config(checkpoint),
        loaded=loaded,
        vectors=_without(left_out, loaded.model),
        left_out=left_out,
    )


def _without(decoders: tuple[str, ...], model: DualEncoder) -> DualEncoder:
    if not decoders:
        return model
    parts: dict[str, Any] = dict.fromkeys(decoders)
    smaller = build_model(dataclasses.replace(model.spec, **parts))
    kept = smaller.state_dict().keys()
    smaller.load_state_dict({name: value for name, value in model.state_dict().items() if name in kept})
    return smaller.eval()
