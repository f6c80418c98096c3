"""From a checkpoint to a folder of another library."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlm.errors import ConfigError, OutputError
from vlm.files import write_json
from vlm.inference.checkpoint import versions
from vlm.inference.export import to_onnx, to_open_clip, to_safetensors, to_transformers
from vlm.inference.export.card import card
from vlm.inference.export.check import Agreement, compare
from vlm.inference.export.opened import Opened, missing
from vlm.inference.export.source import Source, UnfitError, read_source

CHECK, CARD = "export.json", "README.md"


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a checkpoint becomes files, and what they are checked with.

    Args:
        kind_of: what the files are, in words; raises `UnfitError` for a model that they cannot be of.
        tolerance: largest difference between coordinates of unit vectors.
        writers: packages that `write` needs; `readers`: that `open_folder` needs.
    """

    kind_of: Callable[[Source], str]
    write: Callable[[Source, Path], None]
    open_folder: Callable[[Source, Path], Opened]
    tolerance: float
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


FORMATS = {
    "transformers": Format(
        kind_of=to_transformers.kind_of,
        write=to_transformers.write,
        open_folder=to_transformers.open_folder,
        tolerance=1e-5,
    ),
    "open_clip": Format(
        kind_of=to_open_clip.kind_of,
        write=to_open_clip.write,
        open_folder=to_open_clip.open_folder,
        tolerance=1e-5,
        readers=("open_clip",),
    ),
    "onnx": Format(
        kind_of=to_onnx.kind_of,
        write=to_onnx.write,
        open_folder=to_onnx.open_folder,
        tolerance=1e-4,
        writers=("onnx", "onnxscript"),
        readers=("onnxruntime",),
    ),
    "safetensors": Format(
        kind_of=to_safetensors.kind_of,
        write=to_safetensors.write,
        open_folder=to_safetensors.open_folder,
        tolerance=1e-5,  # rows that are filled up further are rounded otherwise
    ),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        left_out: parts of the model that the format has no place for.
        check: how far its vectors are from the source's, or why that is not known.
    """

    source: Source
    kind: str
    left_out: tuple[str, ...]
    check: Agreement | str


def export_model(run: str, out: Path, *, format: str, weights: str) -> Exported:
    """Write a checkpoint in the format of another library into the folder `out`, whole or not at all.

    Args:
        run: a run or a checkpoint.
        format: a key of `FORMATS`.
        weights: "model" or "ema".

    Raises:
        ConfigError: the format is unknown, cannot hold the model or lacks a package, or `out` is not empty.
        CheckpointError: there is no such checkpoint.
        OutputError: it cannot be written, or gives other vectors than the source.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format} is unknown; use {', '.join(FORMATS)}")
    out = out.absolute()  # "." has no name to make a draft's of
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={str(out)!r} is not an empty folder; choose another")
    chosen = FORMATS[format]
    if absent := missing(chosen.writers):
        raise ConfigError(
            f"format={format} needs {', '.join(absent)}, not installed here: pip install -e '.[{format}]'"
        )
    source = read_source(run, weights=weights)
    kind = _kind(source, format)
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        chosen.write(source, draft)
        exported = Exported(
            source=source,
            kind=kind,
            left_out=() if format == "safetensors" else source.left_out,
            check=_check(source, format, draft),
        )
        facts = _facts(exported, format)
        write_json(draft / CHECK, facts, indent=2)
        (draft / CARD).write_text(card(source, facts), encoding="utf-8")
        draft.rename(out)  # complete or absent
    except (OSError, SafetensorError) as error:
        raise OutputError(f"out={out} cannot be written: {error}; nothing of it is left") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return exported


def _kind(source: Source, format: str) -> str:
    try:
        return FORMATS[format].kind_of(source)
    except UnfitError as reason:
        fitting = ", ".join(name for name in FORMATS if _fits(source, name))
        raise ConfigError(
            f"format={format} has no place for a part of {source.checkpoint}: {reason}; "
            f"format={fitting} can hold it"
        ) from None


def _fits(source: Source, format: str) -> bool:
    try:
        FORMATS[format].kind_of(source)
    except UnfitError:
        return False
    return True


def _check(source: Source, format: str, folder: Path) -> Agreement | str:
    chosen = FORMATS[format]
    if absent := missing(chosen.readers):
        return f"not checked: {', '.join(absent)} is not installed"
    try:
        opened = chosen.open_folder(source, folder)
    except Exception as error:  # each library fails in its own way on what its version does not know
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        library = (chosen.readers or (format,))[0]
        raise OutputError(
            f"{library} as it is installed cannot open what format={format} writes: {reason}; nothing is "
            "left of it"
        ) from error
    return compare(source, opened, tolerance=chosen.tolerance)


def _facts(exported: Exported, format: str) -> dict[str, Any]:
    source, check = exported.source, exported.check
    return {
        "format": format,
        "kind": exported.kind,
        "run": source.name,
        "step": source.description.step,
        "weights": source.weights,
        "sha256": source.sha256,
        "left_out": list(exported.left_out),
        "check": check if isinstance(check, str) else check.to_mapping(),
        "versions": {"exported_with": versions(), "trained_with": source.description.versions},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
