"""`vlm interpolate`: checkpoints between two, what each scores, and a picture of the trade-off."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.evaluate import place_of, require_usable, score, suite_of
from vlm.errors import ConfigError
from vlm.files import write_json
from vlm.settings import resolve

if TYPE_CHECKING:
    from vlm.distributed import ControlGroup, Topology
    from vlm.evaluation import Evaluator
    from vlm.evaluation.trade_off import Axes, Scored
    from vlm.inference import Line

MEASURED = "measured.json"
"""Beside the results: of which weights, and by what, so that another suite is not taken for done."""


@command("interpolate")
def main(config: DictConfig) -> None:
    """Entry point of `vlm interpolate`."""
    values = resolve(config)
    weights = _weights(values["weights"])
    from vlm.distributed import ControlGroup, process_group
    from vlm.inference import Line

    with process_group() as topology:
        group, out = ControlGroup(), Path(values["out"])
        line = group.first_rank_does(lambda: Line.between(values["start"], values["end"], out))
        evaluators = _evaluators(values, line)
        require_usable(evaluators, values, topology)
        for weight in weights:
            written = group.first_rank_does(lambda weight=weight: line.write(weight))  # type: ignore[misc]
            if topology.is_main:
                print(f"{line.place(weight)}{'' if written else ': there already'}")
        if not evaluators:
            return
        measured = _Measured(line, evaluators, values, topology, group)
        points, axes = measured.points(weights)
        if topology.is_main:
            _tell(points, axes, line)


def _weights(given: list[float]) -> list[float]:
    """Each once, in ascending order."""
    outside = [weight for weight in given if not 0 <= weight <= 1]
    if outside or not given:
        raise ConfigError(f"weights={given} have to be numbers from 0, the start, to 1, the end")
    return sorted(set(given))


def _evaluators(values: dict[str, Any], line: "Line") -> "dict[str, Evaluator]":
    """None with suite=none.

    Raises:
        ConfigError: an axis is asked for of which no evaluator has the name.
    """
    none = values["suite"] is not None and not values["suite"].get("evaluators")
    evaluators = {} if none else suite_of(values["suite"], line.end)
    for key in ("x", "y"):
        name = values[key]
        if name is not None and name.partition("/")[0] not in evaluators:
            known = ", ".join(evaluators) or "none, as suite=none"
            raise ConfigError(f"{key}={name} names no evaluator of the suite; there are {known}")
    return evaluators


class _Measured:
    """The checkpoints of a line, each scored once."""

    def __init__(
        self,
        line: "Line",
        evaluators: "dict[str, Evaluator]",
        values: dict[str, Any],
        topology: "Topology",
        group: "ControlGroup",
    ) -> None:
        from vlm.inference import read_config

        self.line, self.evaluators, self.values = line, evaluators, values
        self.topology, self.group = topology, group
        self.suite = values["suite"] or read_config(line.end).get("suite")

    def points(self, weights: list[float]) -> "tuple[list[Scored], Axes]":
        """What each weight scores, and what to draw; the same on every rank."""
        from vlm.evaluation.trade_off import Axes, Scored, metrics_of

        points, axes = [], Axes(x=None, y=None)
        for weight in weights:
            results = self._results(self.line.place(weight))
            axes = self.group.first_rank_does(
                lambda results=results: Axes.choose(results, x=self.values["x"], y=self.values["y"])  # type: ignore[misc]
            )
            name, metrics = str(self.line.place(weight)), metrics_of(results)
            points.append(Scored(weight=weight, checkpoint=name, metrics=metrics))
        return points, axes

    def _results(self, checkpoint: Path) -> dict[str, Any]:
        """As `results.json` has them, measured now if they are not there."""
        out = place_of(checkpoint)
        asked = self._asked(checkpoint)
        done = self.group.first_rank_does(lambda: _read(out / MEASURED) == asked)
        if not done:
            score(checkpoint, self.evaluators, self.values, self.topology, out=out)
            self.group.first_rank_does(lambda: write_json(out / MEASURED, asked, indent=2))
        read = self.group.first_rank_does(lambda: _read(out / "results.json"))
        results: dict[str, Any] = read["results"]
        return results

    def _asked(self, checkpoint: Path) -> dict[str, Any]:
        from vlm.inference import WEIGHTS, read_description

        sha256 = read_description(checkpoint).files[WEIGHTS]["sha256"]
        return {"weights_sha256": sha256, "suite": self.suite, "bf16": self.values["bf16"]}


def _tell(points: "list[Scored]", axes: "Axes", line: "Line") -> None:
    from vlm.evaluation.trade_off import write_trade_off

    picture = write_trade_off(line.folder, points, axes, start=str(line.start), end=str(line.end))
    names = [name for name in (axes.x, axes.y) if name is not None]
    print("\n" + "  ".join(["weight", *names]))
    for point in points:
        cells = (f"{point.metrics[name]:.4f}".ljust(len(name)) for name in names)
        print("  ".join([f"{point.weight:<6g}", *cells]).rstrip())
    print(f"numbers: {line.folder / 'trade_off.json'}")
    if picture is None:
        missing = "x=" if axes.x is None else "y="
        print(
            f"picture: none, as the suite has no metric of its own for {missing}; name one of trade_off.json"
        )
    else:
        print(f"picture: {picture}")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main()
