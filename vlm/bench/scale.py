"""`vlm bench scale`: what the loss takes on a rank as ranks are added, by formulas and measured speeds."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vlm.bench.loss import LossBench, medians
from vlm.bench.processes import last_line, run_process
from vlm.bench.report import Report
from vlm.errors import ConfigError
from vlm.losses import gathered_bytes, logits_bytes, traffic_bytes

WORKER = Path(__file__).with_name("transfer_worker.py")
METHODS = ("local_rows", "tiled", "grouped")
GIB, GB = 2**30, 10**9


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What times are computed with.

    Args:
        local_rows_ns, tiled_ns: for a logit, a row of a rank against a column, forward and backward.
        node_gb_per_s, fabric_gb_per_s: 10^9 bytes a second received by a rank, inside a machine and between.
        towers_s: a step of the rank without its loss; None: not known.
    """

    local_rows_ns: float
    tiled_ns: float
    node_gb_per_s: float
    fabric_gb_per_s: float
    towers_s: float | None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is computed.

    Args:
        pairs: of a rank.
        dim: of a vector.
        node_size: ranks of a machine.
        most_ranks: where the table ends.
    """

    pairs: int
    dim: int
    node_size: int
    most_ranks: int


@dataclass(frozen=True, kw_only=True)
class ScaleBench:
    """Measures this machine, then computes; the softmax loss in float32.

    Args:
        columns: pairs of all ranks with which the loss is timed.
        node_gb_per_s: None: measured between two processes of this machine.
        fabric_gb_per_s: None: that inside a machine.
        step: `step.json` of `vlm bench step`, for the time of a whole step; None: of the loss alone.
        out: folder for `scale.json`, `scale.md` and `scale.png`; None: the table is only printed.

    The others are those of `Sizes` and of `vlm bench loss`.
    """

    pairs: int
    dim: int
    node_size: int
    most_ranks: int
    columns: int
    device: str
    rounds: int
    node_gb_per_s: int | float | None
    fabric_gb_per_s: int | float | None
    step: str | None
    out: str | None

    def __post_init__(self) -> None:
        for name in ("pairs", "dim", "node_size", "most_ranks", "columns", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.columns % self.pairs:
            raise ConfigError(f"columns={self.columns} is no multiple of pairs={self.pairs}")
        for name in ("node_gb_per_s", "fabric_gb_per_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be above 0, or null")

    def run(self, tell: Callable[[str], None]) -> Report:
        """Measure what is not given, `tell`ing each result as a line, and compute the table.

        Raises:
            ConfigError: the device cannot be used, there is no second one, or `step` is no record of a step.
        """
        towers_s = None if self.step is None else towers_seconds(Path(self.step), self.pairs)
        ns = self._loss_ns(tell)
        node = self.node_gb_per_s or self._transfer(tell)
        speed = Speed(
            local_rows_ns=ns["local_rows"],
            tiled_ns=ns["tiled"],
            node_gb_per_s=float(node),
            fabric_gb_per_s=float(self.fabric_gb_per_s or node),
            towers_s=towers_s,
        )
        sizes = Sizes(pairs=self.pairs, dim=self.dim, node_size=self.node_size, most_ranks=self.most_ranks)
        return scale_report(speed, sizes, given=self._given())

    def _loss_ns(self, tell: Callable[[str], None]) -> dict[str, float]:
        bench = LossBench(
            rows=self.pairs,
            columns=self.columns,
            dim=self.dim,
            losses=["softmax"],
            implementations=["local_rows", "tiled"],
            tile=None,
            dtype="float32",
            device=self.device,
            rounds=self.rounds,
            peer=None,
            peer_python=None,
            out=None,
        )
        found = bench.run(tell).raw
        logits = self.pairs * self.columns
        return {name.split()[1]: 1e9 * median(medians(many)) / logits for name, many in found.items()}

    def _transfer(self, tell: Callable[[str], None]) -> float:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        advice = ". Where there is no second device, give node_gb_per_s"
        rounds: list[float] = []
        for number in range(self.rounds):
            done = run_process(None, *launch, str(WORKER), self.device)
            rounds.append(last_line(done, "sending between two processes", advice)["gb_per_s"])
            tell(f"round {number + 1}/{self.rounds}  {'all-gather of 2':<24} {rounds[-1]:8.2f} GB/s")
        return median(rounds)

    def _given(self) -> list[str]:
        names = ("node_gb_per_s", "fabric_gb_per_s")
        return [name for name in names if getattr(self, name) is not None]


def scale_report(speed: Speed, sizes: Sizes, *, given: Sequence[str]) -> Report:
    """The table of what a rank takes; `given` names the speeds that were not measured."""
    title = (
        f"{sizes.pairs:,} pairs a rank, {sizes.dim} dimensions, softmax in float32; grouped: tiles inside "
        f"machines of {sizes.node_size} ranks. Memory and traffic in GiB, times in seconds"
    )
    notes = [
        f"Forward and backward of a logit: local_rows {speed.local_rows_ns:.3g} ns, tiled "
        f"{speed.tiled_ns:.3g} ns. Received by a rank: {speed.node_gb_per_s:.3g} GB/s inside a machine, "
        f"{speed.fabric_gb_per_s:.3g} between. "
        + (f"Not measured but given: {', '.join(given)}." if given else "All measured.")
    ]
    rows = [row for method in METHODS for row in scale_rows(method, speed, sizes)]
    raw = {"speed": asdict(speed), "sizes": asdict(sizes), "given": list(given)}
    return Report(name="scale", title=title, rows=rows, raw=raw, notes=notes)


def scale_rows(method: str, speed: Speed, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One row for each power of 2 of ranks; `grouped` is `tiled` inside a machine."""
    implementation: Any = "tiled" if method == "grouped" else method
    for power in range(sizes.most_ranks.bit_length()):
        ranks = 2**power
        members = min(ranks, sizes.node_size) if method == "grouped" else ranks
        pairs = {"pairs": sizes.pairs, "all_pairs": sizes.pairs * members}
        traffic = traffic_bytes(implementation, kind="softmax", dim=sizes.dim, **pairs)
        gathered = gathered_bytes(implementation, kind="softmax", dim=sizes.dim, **pairs)
        ns = speed.local_rows_ns if method == "local_rows" else speed.tiled_ns
        gb_per_s = speed.node_gb_per_s if members <= sizes.node_size else speed.fabric_gb_per_s
        loss_s = ns * 1e-9 * sizes.pairs**2 * members + traffic / GB / gb_per_s
        yield {
            "method": method,
            "ranks": ranks,
            "logits": _rounded(logits_bytes(implementation, **pairs) / GIB),
            "gathered": _rounded(gathered / GIB),
            "received": _rounded(traffic / GIB),
            "loss": _rounded(loss_s),
            "step": "" if speed.towers_s is None else _rounded(loss_s + speed.towers_s),
        }


def towers_seconds(path: Path, pairs: int) -> float:
    """Of a step with so many pairs, without its loss, from what `vlm bench step` has written."""
    try:
        rounds = json.loads(path.read_text(encoding="utf-8"))["raw"]["vlm"]
        seconds = [float(pairs / one["samples_per_s"] * (1 - one["split"]["loss"])) for one in rounds]
        return median(seconds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"step={path} is no step.json of `vlm bench step`: {error!r}") from error


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
