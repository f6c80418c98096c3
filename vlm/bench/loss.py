"""`vlm bench loss`: what each way to compute a contrastive loss takes, beside another project's."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from vlm.bench.processes import last_line, require_open_clip, run_process
from vlm.bench.report import Report
from vlm.bench.rounds import Ratio
from vlm.errors import ConfigError

WORKER = Path(__file__).with_name("loss_worker.py")
PEER_NAMES = {"softmax": "open_clip ClipLoss", "sigmoid": "open_clip SigLipLoss"}


@dataclass(frozen=True, kw_only=True)
class LossBench:
    """Forward and backward of one loss, each in a process of its own, in rounds that go over all of them.

    Args:
        rows: pairs of this rank.
        columns: pairs of all ranks; more than `rows`: as the first of columns / rows ranks would see them,
            without the communication. None: the rows.
        tile: side of the tiles; None: what suits the device.
        peer: another project whose losses are measured too.
        peer_python: interpreter of an environment that has it; None: this one.
        out: folder for `loss.json` and `loss.md`; None: the table is only printed.
    """

    rows: int
    columns: int | None
    dim: int
    losses: Sequence[str]
    implementations: Sequence[str]
    tile: int | None
    dtype: Literal["float32", "bfloat16"]
    device: str
    rounds: int
    peer: Literal["open_clip"] | None
    peer_python: str | None
    out: str | None

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "dim", "rounds", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if self.num_columns % self.rows:
            raise ConfigError(
                f"columns={self.columns} is no multiple of rows={self.rows}; it counts the pairs of all "
                "ranks, of which each has as many"
            )
        for name, known in (
            ("losses", ("softmax", "sigmoid")),
            ("implementations", ("dense", "local_rows", "tiled")),
        ):
            values = getattr(self, name)
            wrong = [value for value in values if value not in known]
            if wrong or not values:
                raise ConfigError(
                    f"{name}=[{','.join(values)}] has to name one or more of {', '.join(known)}"
                )

    @property
    def num_columns(self) -> int:
        """Pairs of all ranks."""
        return self.columns or self.rows

    def run(self, tell: Callable[[str], None]) -> Report:
        """Measure everything, `tell`ing each result as a line.

        Raises:
            ConfigError: the peer is not installed, the device cannot be used, or memory does not suffice.
        """
        device = _device(self.device)
        if self.peer is not None:
            require_open_clip(self.peer_python, key="peer_python")
        cases = self._cases()
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
        for number in range(self.rounds):
            for name, case in cases.items():
                result = self._measure({**case, "device": device})
                found[name].append(result)
                seconds, gib = median(result["seconds"]), result["peak_bytes"] / 2**30
                tell(f"round {number + 1}/{self.rounds}  {name:<24} {seconds:8.3f} s  {gib:8.3f} GiB")
        return self._report(found, device)

    def _cases(self) -> dict[str, dict[str, Any]]:
        shared = {
            "rows": self.rows,
            "columns": self.num_columns,
            "dim": self.dim,
            "dtype": self.dtype,
            "tile": self.tile,
        }
        cases = {}
        for loss in self.losses:
            for name in self.implementations:
                cases[f"{loss} {name}"] = {**shared, "code": "vlm", "loss": loss, "implementation": name}
            if self.peer is not None:
                cases[PEER_NAMES[loss]] = {**shared, "code": self.peer, "loss": loss}
        return cases

    def _measure(self, case: dict[str, Any]) -> dict[str, Any]:
        python = None if case["code"] == "vlm" else self.peer_python
        what = (
            f"{case['loss']} {case.get('implementation', case['code'])} with rows={self.rows} "
            f"columns={self.num_columns} on {case['device']}"
        )
        advice = ". Where memory is short, leave dense and the peer out, or take fewer rows"
        return last_line(run_process(python, str(WORKER), json.dumps(case)), what, advice)

    def _report(self, found: dict[str, list[dict[str, Any]]], device: str) -> Report:
        rows = []
        for name, rounds in found.items():
            seconds = medians(rounds)
            peaks = [one["peak_bytes"] / 2**20 for one in rounds]
            rows.append(
                {
                    "loss": name,
                    "peak MiB": round(median(peaks)),
                    "seconds": _rounded(median(seconds)),
                    "least": _rounded(min(seconds)),
                    "most": _rounded(max(seconds)),
                }
            )
        title = (
            f"{self.rows} rows, {self.num_columns} columns, {self.dim} dimensions, {self.dtype}, {device}: "
            f"forward and backward, medians of {self.rounds} rounds"
        )
        return Report(name="loss", title=title, rows=rows, raw=found, notes=loss_notes(found))


def loss_notes(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What tiles take beside the others of their kind, in the same rounds."""
    notes = []
    for kind, peer in PEER_NAMES.items():
        tiled = found.get(f"{kind} tiled", [])
        for other in (f"{kind} local_rows", peer):
            others = found.get(other, [])
            if tiled and others:
                memory = Ratio.of(*map(_peaks, (tiled, others)))
                seconds = Ratio.of(*map(medians, (tiled, others)))
                notes.append(
                    f"{kind} tiled over {other}, in the same round: memory {memory}, time {seconds}."
                )
    return notes


def _peaks(rounds: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(max(1, one["peak_bytes"])) for one in rounds]


def medians(rounds: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of a call in each round."""
    return [median(one["seconds"]) for one in rounds]


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _device(name: str) -> str:
    import torch  # takes seconds to import

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return name
