"""`results.json`: the numbers of a suite, and of what they are."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from vlm.evaluation.evaluator import Result
from vlm.files import remove_drafts, write_json, writing
from vlm.inference import read_description, versions


def write_results(
    folder: Path, results: Mapping[str, Result], *, checkpoint: Path, weights: str = "model"
) -> Path:
    """Write `results.json` into `folder`; on the main rank.

    Under `results` stands, for each evaluation, what CLIP_benchmark's files have (`dataset`, `task`,
    `metrics`), with chance levels and the number of images beside it, and where there are any, what the
    captions alone get, and notes.

    Args:
        weights: of the checkpoint, as `load` takes them.

    Raises:
        OutputError: it cannot be written; one that was there is unchanged.
    """
    description = read_description(checkpoint)
    content = {
        "checkpoint": str(checkpoint.absolute()),
        "step": description.step,
        "weights": weights,
        "model": description.model.to_mapping(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"evaluated_with": versions(), "trained_with": description.versions},
        "results": {
            name: {
                "dataset": name,
                "task": result.task,
                "metrics": result.metrics,
                "chance": result.chance,
                "num_samples": result.num_samples,
            }
            | ({"text_only": result.text_only} if result.text_only else {})
            | ({"notes": result.notes} if result.notes else {})
            for name, result in results.items()
        },
    }
    path = folder / "results.json"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder)
    write_json(path, content, indent=2)
    return path
