"""Checkpoints on the line between two others."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from vlm.errors import CheckpointError, ConfigError, OutputError
from vlm.inference.checkpoint import (
    DESCRIPTION,
    TOKENIZER,
    WEIGHTS,
    Description,
    latest_checkpoint,
    read_config,
    read_description,
    read_tokenizer,
    read_weights,
    save_model,
    verify,
)
from vlm.inference.contradictions import Difference, differences
from vlm.models.state_dict import require_fit, table

ORIGIN = "interpolate"
"""The key of an interpolated checkpoint's `config.json` under which stands what it was made of."""

# How a training begins with these; what became of them stands in the weights.
_BEGINNINGS = ("model.init_logit_scale", "model.init_logit_bias")


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """(1 - weight) * start + weight * end of each tensor, computed in float64, in the dtype of `start`.

    At 0 and 1 the result is `start` and `end` to the last bit. The logit scale is interpolated as it is
    stored, as a logarithm.

    Args:
        start: tensors by name.
        end: of the same names and shapes.

    Source: arXiv:2109.01903, section 4.
    """
    if weight in (0, 1):  # else 0 * inf would be no number, and -0 + 0 lose its sign
        return dict(end if weight else start)
    return {
        name: ((1 - weight) * value.double() + weight * end[name].double()).to(value.dtype)
        for name, value in start.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Two checkpoints of one model, and where checkpoints between them are written."""

    start: Path
    end: Path
    folder: Path

    @classmethod
    def between(cls, start: str | Path, end: str | Path, folder: Path) -> "Line":
        """The last checkpoints of two runs, or two checkpoints.

        Raises:
            CheckpointError: one is missing, incomplete or damaged.
            ConfigError: they are of different models; every key that differs is named.
        """
        line = cls(start=latest_checkpoint(start), end=latest_checkpoint(end), folder=folder)
        line._check()
        return line

    def place(self, weight: float) -> Path:
        """Where the checkpoint of a weight is: `<folder>/checkpoints/weight_0.25`."""
        return self.folder / "checkpoints" / f"weight_{weight!r}".removesuffix(".0")

    def write(self, weight: float) -> bool:
        """Write the checkpoint of a weight, unless it is there; on one rank. Returns whether it was written.

        Raises:
            ConfigError: there is one, of other checkpoints.
            CheckpointError: there is one, and it is damaged.
            OutputError: it cannot be written; nothing of it is left.
        """
        place, origin = self.place(weight), self._origin(weight)
        if place.exists():
            _require_same(place, origin)
            return False
        description = read_description(self.end)
        start, end = read_weights(self.start), read_weights(self.end)
        draft = place.with_name(f".{place.name}.tmp")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            save_model(
                draft,
                weights=interpolate(start, end, weight),
                spec=description.model,
                preprocess=description.preprocess,
                tokenizer=read_tokenizer(self.end) if description.model.text else None,
                step=description.step,
                # What it is measured by, where nothing else is named, is what the end was measured by.
                config={ORIGIN: origin, "suite": read_config(self.end).get("suite")},
                data=description.data,
            )
            draft.rename(place)  # complete or absent
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{place} cannot be written: {error}; nothing of it is left") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def _check(self) -> None:
        start, end = read_description(self.start), read_description(self.end)
        for checkpoint, description in ((self.start, start), (self.end, end)):
            verify(checkpoint, (WEIGHTS, TOKENIZER) if description.model.text else (WEIGHTS,))
        rows = _contradictions(start, end)
        if not rows and start.model.text and not _same_tokenizer(self.start, self.end):
            rows = [Difference(TOKENIZER, "its own", "another")]
        if rows:
            raise ConfigError(
                f"start={self.start} and end={self.end} are different models, between which there is none; "
                f"give two checkpoints of one:\n{table(('key', 'start', 'end'), rows)}"
            )
        require_fit(read_weights(self.start), read_weights(self.end), where=f"end={self.end}")

    def _origin(self, weight: float) -> dict[str, Any]:
        return {
            "weight": weight,
            **{name: str(path.absolute()) for name, path in (("start", self.start), ("end", self.end))},
            **{
                f"{name}_sha256": read_description(path).files[WEIGHTS]["sha256"]
                for name, path in (("start", self.start), ("end", self.end))
            },
        }


def _contradictions(start: Description, end: Description) -> list[Difference]:
    rows = differences(start.model.to_mapping(), end.model.to_mapping())
    rows += differences(start.preprocess.to_mapping(), end.preprocess.to_mapping(), key="data.preprocess")
    return [
        row
        for row in rows
        if row.key not in _BEGINNINGS or (row.key.endswith("bias") and None in (row.one, row.other))
    ]


def _same_tokenizer(start: Path, end: Path) -> bool:
    """Whether two tokenizers give the same ids, and cut texts to the same length."""
    one, other = (json.loads((folder / TOKENIZER).read_text(encoding="utf-8")) for folder in (start, end))
    return bool(one == other)


def _require_same(place: Path, origin: Mapping[str, Any]) -> None:
    if not (place / DESCRIPTION).is_file():
        raise CheckpointError(f"{place} is no checkpoint; delete it, or choose another out=")
    verify(place)
    made_of = read_config(place).get(ORIGIN)
    facts = [name for name in origin if name not in ("start", "end")]  # folders may move
    if not isinstance(made_of, Mapping) or any(made_of.get(name) != origin[name] for name in facts):
        raise ConfigError(
            f"{place} lies between other checkpoints than start={origin['start']} and end={origin['end']}; "
            "choose another out=, or delete it"
        )
