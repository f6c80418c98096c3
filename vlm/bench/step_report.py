"""The table of `vlm bench step`: what each code did in a step, and how fast."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vlm.bench.report import Report
from vlm.bench.rounds import Ratio
from vlm.errors import ConfigError

PARTS = ("image", "text", "encode", "loss", "backward", "optimizer", "rest")
"""Of a step. A compiled model does not tell its towers apart: `encode` is both."""
MOST_APART = 0.02

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""By code, what each round gave."""


def require_comparable(own: Mapping[str, Any], peer: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` where the peer's step is another one."""
    ours, theirs = own["parameters"], peer["parameters"]
    if abs(ours - theirs) > MOST_APART * theirs:
        raise ConfigError(
            f"bench.peer=open_clip has {theirs:,} parameters and the model here {ours:,}: these are not the "
            "same towers. Take a model without options that open_clip lacks, or bench.peer=null"
        )
    if own["ranks"] > 1:
        raise ConfigError(
            f"bench.peer=open_clip runs on one device, not on {own['ranks']}; trainer.devices=1"
        )
    if own["threads"] != peer["threads"]:
        raise ConfigError(
            f"bench.peer=open_clip ran with {peer['threads']} threads, the step here with {own['threads']}; "
            "set OMP_NUM_THREADS for both"
        )


def step_report(found: Results, *, rows: int, steps: int, precision: str) -> Report:
    """Medians of the rounds, and what each side did.

    Args:
        rows: of a batch.
        steps: of a round.
    """
    own = found["vlm"][0]
    title = (
        f"A step of {rows} pairs, {precision}, {own['threads']} threads; MFU of {own['peak_tflops']:.2f} "
        f"TFLOP/s ({own['peak_from']}); medians of {len(found['vlm'])} rounds of {steps} steps"
    )
    table = [_row(name, results, own) for name, results in found.items()]
    return Report(name="step", title=title, rows=table, raw=found, notes=_notes(found))


def _row(name: str, results: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> dict[str, Any]:
    rates = [result["samples_per_s"] for result in results]
    middle = sorted(results, key=lambda result: result["samples_per_s"])[len(results) // 2]
    row: dict[str, Any] = {
        "code": name,
        "parameters": middle["parameters"],
        "tokens": middle["text_length"],
        "samples/s": round(median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
    }
    row |= {f"{part} %": _percent(_with_encode(middle["split"]).get(part)) for part in PARTS}
    if middle["text_length"] != own["text_length"]:
        return row | {"TFLOP/s": "", "MFU %": ""}  # another text is other work
    tflops = own["flops_per_sample"] * median(rates) / 1e12
    return row | {"TFLOP/s": round(tflops, 4), "MFU %": round(100 * tflops / own["peak_tflops"], 1)}


def _with_encode(split: Mapping[str, float]) -> dict[str, float]:
    towers = {"encode": split["image"] + split["text"]} if "image" in split else {}
    return {**split, **towers}


def _percent(share: float | None) -> float | str:
    return "" if share is None else round(100 * share, 1)


def _notes(found: Results) -> list[str]:
    notes = [
        "Of each code: rows that are on the device already, so nothing is loaded or copied.",
        *(f"{name}: {results[0]['step']}" for name, results in found.items()),
    ]
    if "open_clip" in found:
        own, peer = ([result["samples_per_s"] for result in found[name]] for name in ("vlm", "open_clip"))
        notes.append(f"samples/s of vlm over those of open_clip, in the same round: {Ratio.of(own, peer)}.")
    return notes
