"""`vlm evaluate`: rebuild the model from a checkpoint, run a suite, write results and a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.device import check_batches, usable_device
from vlm.errors import CheckpointError, ConfigError
from vlm.settings import build_evaluators, resolve

if TYPE_CHECKING:
    from vlm.distributed import Topology
    from vlm.evaluation import Evaluator, Result


@command("evaluate")
def main(config: DictConfig) -> None:
    """Entry point of `vlm evaluate`."""
    values = resolve(config)
    from vlm.distributed import process_group
    from vlm.inference import latest_checkpoint

    checkpoint = latest_checkpoint(values["run"])
    evaluators = suite_of(values["suite"], checkpoint)
    weights = values["weights"]
    out = Path(values["out"] or place_of(checkpoint, weights=weights))
    with process_group() as topology:
        require_usable(evaluators, values, topology)
        results = score(checkpoint, evaluators, values, topology, out=out, weights=weights)
        if not topology.is_main:
            return
        print(_table(results))
        print(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}  (open it in a browser)")


def suite_of(suite: Any, checkpoint: Path) -> "dict[str, Evaluator]":
    """The evaluators of a `suite` node; where it is not set, those that the checkpoint was trained with.

    Raises:
        ConfigError: there are none.
    """
    from vlm.inference import run_of

    evaluators = build_evaluators(suite) if suite else _of_training(checkpoint)
    if not evaluators:
        raise ConfigError(
            f"suite is not set, and {run_of(checkpoint)} was trained without one; try suite=zero_shot, or "
            "suite=vision for images alone"
        )
    return evaluators


def place_of(checkpoint: Path, *, weights: str = "model") -> Path:
    """Where the results of a checkpoint are written, unless asked for otherwise."""
    from vlm.inference import run_of

    name = checkpoint.name if weights == "model" else f"{checkpoint.name}_{weights}"
    return run_of(checkpoint) / "evaluation" / name


def require_usable(
    evaluators: "Mapping[str, Evaluator]", values: dict[str, Any], topology: "Topology"
) -> None:
    """Check the numbers of a command that evaluates, and on the first rank what its evaluators read."""
    check_batches(values)
    usable_device(values["device"])
    if topology.is_main:
        for evaluator in evaluators.values():
            evaluator.check()


def score(
    checkpoint: Path,
    evaluators: "Mapping[str, Evaluator]",
    values: dict[str, Any],
    topology: "Topology",
    *,
    out: Path,
    weights: str = "model",
) -> "dict[str, Result]":
    """Run evaluators on a checkpoint; `results.json` and `report.html` go to `out`. Called on every rank.

    Args:
        values: `device`, `batch_size`, `num_workers` and `bf16` of the command.
    """
    from vlm.evaluation import check_parts, run_suite, write_report, write_results
    from vlm.inference import Embedder, load, run_of

    loaded = load(checkpoint, weights=weights, device=usable_device(values["device"]))
    check_parts(evaluators, loaded.model.spec)
    embedder = Embedder(
        loaded,
        topology,
        batch_size=values["batch_size"],
        num_workers=values["num_workers"],
        bf16=values["bf16"],
        progress=True,
    )
    results = run_suite(evaluators, embedder)
    if topology.is_main:
        metrics_csv = run_of(checkpoint) / "metrics.csv"
        write_results(out, results, checkpoint=checkpoint, weights=weights)
        write_report(out, results, checkpoint=checkpoint, metrics_csv=metrics_csv, weights=weights)
    return results


def _of_training(checkpoint: Path) -> "dict[str, Evaluator]":
    """The evaluators that a checkpoint was trained with.

    It may be a stranger's: only the project's own evaluators are built, on files and addresses.

    Raises:
        CheckpointError: it names anything else.
    """
    from vlm.inference import CONFIG, read_config

    suite, path = read_config(checkpoint).get("suite"), checkpoint / CONFIG
    try:
        _refuse_code(suite)
        return build_evaluators(suite)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(
            f"the suite in {path} is not used: {error}; name the one to be measured by suite="
        ) from error


def _refuse_code(node: Any) -> None:
    """Raise a ValueError where building a node, or reading what it names, could run code."""
    from vlm import evaluation  # imports torch

    if isinstance(node, Mapping):
        own = {f"vlm.evaluation.{name}" for name in evaluation.__all__}
        if "_target_" in node and node["_target_"] not in own:
            raise ValueError(f"_target_={node['_target_']!r} is no evaluator of vlm, and may be any code")
        for value in node.values():
            _refuse_code(value)
    elif isinstance(node, list):
        for value in node:
            _refuse_code(value)
    elif isinstance(node, str) and ("pipe:" in node or "${" in node):
        raise ValueError(f"{node!r} would run a command or read the environment")


def _table(results: dict[str, Any]) -> str:
    """One line for each metric: set, name, value, and what guessing and the captions alone get."""
    rows = [
        (
            name,
            metric,
            *(
                f"{of[metric]:.4f}" if metric in of else ""
                for of in (result.metrics, result.chance, result.text_only)
            ),
        )
        for name, result in results.items()
        for metric in result.metrics
    ]
    rows.insert(0, ("set", "metric", "value", "chance", "text only" if any(row[4] for row in rows) else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    main()
