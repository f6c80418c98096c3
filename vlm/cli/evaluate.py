"""`vlm evaluate`: rebuild the model from a checkpoint, run a suite, write results and a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.device import check_batches, usable_device
from vlm.errors import CheckpointError, ConfigError
from vlm.settings import build_evaluators, resolve


@command("evaluate")
def main(config: DictConfig) -> None:
    """Entry point of `vlm evaluate`."""
    values = resolve(config)
    from vlm.distributed import process_group
    from vlm.evaluation import check_text, run_suite, write_report, write_results
    from vlm.inference import Embedder, latest_checkpoint, load

    checkpoint = latest_checkpoint(values["run"])
    run_folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    evaluators = build_evaluators(values["suite"]) if values["suite"] else _of_training(checkpoint)
    if not evaluators:
        raise ConfigError(
            f"suite is not set, and {run_folder} was trained without one; try suite=zero_shot, or "
            "suite=vision for images alone"
        )
    weights = values["weights"]
    place = checkpoint.name if weights == "model" else f"{checkpoint.name}_{weights}"
    out = Path(values["out"] or run_folder / "evaluation" / place)
    with process_group() as topology:
        check_batches(values)
        device = usable_device(values["device"])
        if topology.is_main:
            for evaluator in evaluators.values():
                evaluator.check()
        loaded = load(checkpoint, weights=weights, device=device)
        check_text(evaluators, has_text=loaded.tokenizer is not None)
        embedder = Embedder(
            loaded,
            topology,
            batch_size=values["batch_size"],
            num_workers=values["num_workers"],
            bf16=values["bf16"],
            progress=True,
        )
        results = run_suite(evaluators, embedder)
        if not topology.is_main:
            return
        write_results(out, results, checkpoint=checkpoint, weights=weights)
        report = write_report(
            out, results, checkpoint=checkpoint, metrics_csv=run_folder / "metrics.csv", weights=weights
        )
        print(_table(results))
        print(f"results: {out / 'results.json'}\nreport:  {report}  (open it in a browser)")


def _of_training(checkpoint: Path) -> dict[str, Any]:
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
