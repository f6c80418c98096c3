"""One HTML page about an evaluated checkpoint, complete in itself: no script, no network."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vlm import charts
from vlm.data import Preprocess, data_uri
from vlm.evaluation.evaluator import Result, pictures_at
from vlm.files import replacing, writing
from vlm.inference import Description, read_description, read_weights, run_of

PICTURE_SIZE = 128
CJK = re.compile("[\u3400-\u9fff]")
LABELS = {
    "acc1": "top-1",
    "knn_acc1": "top-1",
    "lp_acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per class",
    "map": "mAP",
    "map@r": "mAP@R",
    "acc": "all cases",
    "macro_acc": "mean of the categories",
    "tot_acc": "all cases, captions alone",
    "macro_tot_acc": "mean of the categories, captions alone",
    "text_score": "groups: captions of each picture",
    "image_score": "groups: pictures of each caption",
    "group_score": "groups: both",
    "true_false_acc": "true or false, by a threshold",
    **{f"Bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
    "ROUGE_L": "ROUGE-L",
    "mean_length": "words a caption",
    "mean_average_precision": "mAP",
    "clip_score": "CLIP score",
    "auc": "AUC",
    "kendall_tau_b": "Kendall's tau-b",
    "kendall_tau_c": "Kendall's tau-c",
    "spearman": "Spearman",
}
"""Column titles; a metric that is not here is shown by its own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An evaluation as the page shows it."""

    name: str
    result: Result
    pictures: dict[int, str]
    """Position in the data set -> data URI."""


def write_report(
    folder: Path,
    results: Mapping[str, Result],
    *,
    checkpoint: Path,
    metrics_csv: Path | None,
    weights: str = "model",
) -> Path:
    """Write `report.html` into `folder`; on the main rank.

    Args:
        weights: of the checkpoint, as `load` takes them.
        metrics_csv: what training logged, a column `step` and one for each value; without it, or where
            there is no such file, the page has no curves.

    Raises:
        OutputError: it cannot be written; one that was there is unchanged.
    """
    description = read_description(checkpoint)
    parts = [
        Part(name=name, result=result, pictures=_pictures(result.details, description.preprocess))
        for name, result in results.items()
    ]
    drawn = metrics_csv is not None and metrics_csv.is_file()
    curves = charts.read_curves(metrics_csv) if drawn and metrics_csv is not None else []
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run_of(checkpoint).name,
            step=description.step,
            facts=_facts(description, checkpoint, weights),
            created=datetime.now(UTC),
            tasks=_by_task(parts),
            curves=[(curve, charts.draw(curve)) for curve in curves],
        )
    )
    path = folder / "report.html"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(page, encoding="utf-8")
    return path


def environment() -> Environment:
    """What the pages about evaluations are made with: templates of this package, and filters."""
    made = Environment(
        loader=PackageLoader("vlm.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "percent": percent,
        "number": charts.number,
        "lang": lambda text: "zh" if CJK.search(text) else "en",
        "label": label,
        "draw_sweep": draw_sweep,
    }
    made.filters |= filters
    return made


def percent(value: float) -> str:
    """A share as percent: one decimal, two significant digits where that would show too little."""
    return f"{100 * value:.1f} %" if value == 0 or value >= 0.00995 else f"{100 * value:.2g} %"


def label(metric: str) -> str:
    """The title of a metric's column."""
    if metric.startswith("image_to_image_recall@"):
        return metric.replace("image_to_image_recall", "R")
    if found := re.fullmatch(r"(image|text)_retrieval_recall(@\d+)", metric):
        return f"{found[1]} R{found[2]}"
    if metric.startswith("few_shot_acc1@"):
        return f"{metric.partition('@')[2]} of each class"
    if metric.endswith("_tot_acc") and metric not in LABELS:
        return f"{label(metric.removesuffix('_tot_acc'))}, captions alone"
    return LABELS.get(metric, metric.removesuffix("_acc").replace("_", " "))


def draw_sweep(sweep: list[tuple[float, float]]) -> Markup:
    """An SVG of what each weight of a penalty got, the weights as powers of ten."""
    points = [(math.log10(weight), value) for weight, value in sweep]
    return charts.draw(charts.Curve(name="validation accuracy", points=points, across="log10 of l2"))


def _by_task(parts: list[Part]) -> dict[str, list[Part]]:
    tasks: dict[str, list[Part]] = {}
    for part in parts:
        tasks.setdefault(part.result.task, []).append(part)
    return tasks


def _facts(description: Description, checkpoint: Path, weights: str) -> dict[str, str]:
    """What the model is, in a few words a line."""
    image, text = description.model.image, description.model.text
    options = [f"{name.replace('_', ' ')} {value}" for name, value in image.options.items()]
    parameters = sum(weight.numel() for weight in read_weights(checkpoint).values())
    text_facts = [text.kind.replace("_", " ") if text else "none"]
    text_facts += [
        f"{name.replace('_', ' ')} {getattr(text, name)}"
        for name in ("name", "width", "layers", "context_length", "vocab_size")
        if getattr(text, name, None) is not None
    ]
    return {
        "Image tower": ", ".join([image.name, f"{image.image_size} px", *options]),
        "Text tower": ", ".join(text_facts),
        "Joint space": f"{description.model.embed_dim} dimensions",
        "Parameters": f"{parameters:,}",
        **({"Weights": "their average over the run"} if weights == "ema" else {}),
        "Trained with": ", ".join(f"{name} {version}" for name, version in description.versions.items()),
    }


def _pictures(details: Mapping[str, Any], preprocess: Preprocess) -> dict[int, str]:
    """The pictures that the examples use, as the model sees them."""
    positions = sorted(set(details["pictures"]))
    if not positions:
        return {}
    images = pictures_at(details["shards"], positions)
    return dict(zip(positions, _data_uris(images, preprocess), strict=True))


def _data_uris(images: list[Image.Image], preprocess: Preprocess) -> Iterator[str]:
    for image in images:
        seen = Image.fromarray(preprocess(image).permute(1, 2, 0).contiguous().numpy())
        seen.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        yield data_uri(seen)
