"""What training adds to a checkpoint: the optimizer's moments by parameter name, and the step."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vlm.errors import CheckpointError, ConfigError
from vlm.files import remove_drafts, replacing
from vlm.inference import (
    EMA,
    WEIGHTS,
    Loaded,
    checkpoints_of,
    load_weights,
    read_description,
    read_weights,
    save_model,
    save_weights,
    verify,
)

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"

EVALUATION = "evaluation.json"
"""What the suite gave for a checkpoint, written into it later; without it an evaluation was cut short."""

STATE = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""


def save(
    folder: Path,
    loaded: Loaded,
    *,
    weights: Mapping[str, torch.Tensor],
    average: Mapping[str, torch.Tensor] | None,
    moments: Mapping[str, torch.Tensor],
    parts: Path | None = None,
    step: int,
    config: Mapping[str, Any],
    seed: int,
    data: Mapping[str, Any],
) -> None:
    """Write a checkpoint under another name, then rename it: `folder` is complete or absent.

    Args:
        weights: of the model, by name.
        average: of the weights over the run, likewise; None: there is none.
        moments: of the optimizer, as `moments_of` gives them.
        parts: a folder, beside `folder`, of files that ranks have written; they become part of it.

    Raises:
        CheckpointError: it cannot be written; nothing of it is left then.
    """
    draft = _hidden(folder, "tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        for path in [] if parts is None else sorted(parts.iterdir()):
            path.rename(draft / path.name)
        save_file(dict(moments), draft / OPTIMIZER)
        if average is not None:
            save_weights(draft / EMA, average, loaded.model.spec)
        save_model(
            draft,
            weights=weights,
            spec=loaded.model.spec,
            preprocess=loaded.preprocess,
            tokenizer=loaded.tokenizer,
            step=step,
            config=config,
            seed=seed,
            data=data,
        )
        for path in draft.iterdir():
            _flush(path)
        _flush(draft)
        remove(folder)
        draft.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"{folder} cannot be written: {error}; earlier checkpoints are whole: make room, then go on with "
            "run.resume=true"
        ) from error


def parts_of(folder: Path) -> Path:
    """Where ranks write their parts of the checkpoint `folder`."""
    return _hidden(folder, "parts")


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no part of it ever looks like one; absent is fine."""
    trash = _hidden(folder, "old")
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


class CheckpointFolder:
    """The checkpoints of one run: which stay, and which is the best.

    Args:
        keep_last: how many of the newest stay; None keeps all.
        keep_best: a logged metric, such as `eval/val/acc1`; its best checkpoint stays too.
    """

    def __init__(self, path: Path, *, keep_last: int | None, keep_best: str | None) -> None:
        self.path = path
        self.keep_last = keep_last
        self.keep_best = keep_best

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self.path / f"step_{step:08d}"

    def prune(self, step: int) -> None:
        """Delete older checkpoints, and what a killed process left half-written or half-deleted.

        Args:
            step: of the checkpoint written last. Those of later steps are damaged, and were passed over when
                the run was resumed: they get another name, else they would count as the newest.
        """
        for pattern in (".*.tmp", ".*.old", ".*.parts"):
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)
        newest = self.place(step)
        for damaged in [path for path in checkpoints_of(self.path.parent) if path.name > newest.name]:
            damaged.rename(self._aside(damaged))
        found = checkpoints_of(self.path.parent)
        for folder in (self.path, *found):
            remove_drafts(folder)
        if self.keep_last is None:
            return
        best = self._best()
        for checkpoint in found[: -self.keep_last]:
            if best is None or checkpoint.name != best["checkpoint"]:
                remove(checkpoint)

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metric asked for is better than ever; of ranks the lowest is best, else the highest.

        Raises:
            ConfigError: there is no such metric.
        """
        if self.keep_best is None:
            return False
        if self.keep_best not in metrics:
            raise ConfigError(
                f"checkpoint.keep_best={self.keep_best} is no metric; there are {', '.join(sorted(metrics))}"
            )
        best = self._best()
        if best is None or best["metric"] != self.keep_best:
            return True
        lower, value = self.keep_best.endswith("_rank"), metrics[self.keep_best]
        return bool(value < best["value"] if lower else value > best["value"])

    def set_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the checkpoint of a step as the best."""
        assert self.keep_best is not None
        best = {
            "checkpoint": self.place(step).name,
            "metric": self.keep_best,
            "value": metrics[self.keep_best],
        }
        _write_json(self.path / "best.json", best)
        self.prune(step)

    def note_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Put the metrics of an evaluation into the checkpoint of its step, if it has one."""
        if self.place(step).is_dir():
            _write_json(self.place(step) / EVALUATION, metrics)

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation of the checkpoint of this step has come to its end."""
        return (self.place(step) / EVALUATION).is_file()

    def _aside(self, damaged: Path) -> Path:
        aside = damaged.with_name(f"damaged_{damaged.name}")
        shutil.rmtree(aside, ignore_errors=True)
        log.warning("%s is damaged and now called %s; delete it if you do not need it", damaged, aside.name)
        return aside

    def _best(self) -> dict[str, Any] | None:
        try:
            best: dict[str, Any] = json.loads((self.path / "best.json").read_text())
            known = isinstance(best["metric"], str) and math.isfinite(best["value"])
            return best if known and (self.path / best["checkpoint"]).is_dir() else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None  # none yet, or no longer readable: start over


def last_whole(run: Path) -> Path | None:
    """The last checkpoint of a run whose files are what was written, or None where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    found = checkpoints_of(run)
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
        else:
            return checkpoint
    if found:
        raise CheckpointError(
            f"every checkpoint of {run} is damaged ({', '.join(path.name for path in found)}); restore one, "
            "or start anew under another run.name"
        )
    return None


def load_step(checkpoint: Path) -> int:
    """Number of optimizer steps taken when `checkpoint` was written."""
    return read_description(checkpoint).step


def load_weights_into(model: nn.Module, checkpoint: Path, name: str = WEIGHTS) -> None:
    """Replace the weights of `model` by those in a file of `checkpoint`."""
    load_weights(model, read_weights(checkpoint, name), where=str(checkpoint / name))


def read_moments(checkpoint: Path, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """What `moments_of` gave when `checkpoint` was written.

    Args:
        shapes: of the model's parameters, by name.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is not of these parameters.
    """
    path = checkpoint / OPTIMIZER
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} has no {OPTIMIZER}; it can be evaluated, not resumed")
    try:
        moments = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; resume from an earlier checkpoint") from error
    if not moments:
        raise CheckpointError(f"{path} is empty; resume from an earlier checkpoint")
    for key in moments:
        if key.partition("/")[2] not in shapes:
            raise CheckpointError(f"{path} has {key}, which this model does not; it is another model")
    for name, shape in shapes.items():
        state = _state_of(name, moments)
        if state:  # a parameter that never had a gradient has none
            _check_moments(state, shape, f"{path}: {name}")
    return moments


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    """What AdamW keeps for each parameter, as `<entry>/<name>`; of a sharded one, sharded."""
    return {
        f"{entry}/{name}": optimizer.state[parameter][entry].detach()
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for entry in STATE
    }


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, torch.Tensor],
) -> None:
    """Replace what an optimizer keeps for its parameters."""
    for name, parameter in parameters.items():
        state = _state_of(name, moments)
        if state:
            optimizer.state[parameter] = {k: _placed(v, parameter) for k, v in state.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n")


def _state_of(name: str, moments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {entry: moments[f"{entry}/{name}"] for entry in STATE if f"{entry}/{name}" in moments}


def _check_moments(state: Mapping[str, torch.Tensor], shape: torch.Size, where: str) -> None:
    for entry in STATE:
        expected = torch.Size([]) if entry == "step" else shape
        found = state.get(entry)
        if found is None or found.shape != expected or not found.is_floating_point():
            what = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise CheckpointError(
                f"{where} has {what} as {entry}, expected torch.float32 of shape {tuple(expected)}; "
                "resume from an earlier checkpoint"
            )


def _hidden(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{ending}")


def _placed(state: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """On the parameter's device, a moment also in its memory layout, which fused optimizers rely on, and
    sharded as it is."""
    if state.shape != parameter.shape:
        return state.to(parameter.device)
    if isinstance(parameter, DTensor):  # every rank has read the whole, so nothing is sent
        state = distribute_tensor(
            state.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return torch.empty_like(parameter).copy_(state)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
