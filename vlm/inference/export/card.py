"""The model card: what the model is, what it was trained on, how well it does, how it is loaded."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from vlm.inference.export.source import Source

_RECIPE = {
    "objective": ("objective", "_target_"),
    "data": ("data", "train", "shards"),
    "captions": ("data", "train", "captions"),
    "pairs in a step": ("data", "global_batch_size"),
    "steps": ("trainer", "max_steps"),
    "optimizer": ("optimizer", "_target_"),
    "learning rate": ("optimizer", "lr"),
    "weight decay": ("optimizer", "weight_decay"),
    "warmup steps": ("schedule", "warmup_steps"),
    "started from": ("init_from",),
    "imported from": ("import", "from"),
}
"""What of a run's configuration stands in a card, by where it stands there."""


def card(source: Source, facts: Mapping[str, Any]) -> str:
    """Markdown with the front matter that Hugging Face's hub reads.

    Args:
        facts: what stands in `export.json`.
    """
    template = files("vlm.inference.export").joinpath("card.md.j2").read_text(encoding="utf-8")
    return (
        Environment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        .from_string(template)
        .render(
            facts=facts,
            check=facts["check"] if isinstance(facts["check"], Mapping) else None,
            parts=list(_parts(source)),
            recipe=list(_recipe(source.config)),
            results=list(_results(source)),
            model=source.spec,
            preprocess=source.preprocess,
            scale=source.vectors.logit_scale.exp().item(),
        )
    )


def _parts(source: Source) -> Iterator[tuple[str, str, int]]:
    """Rows of part, what it is, and its parameters."""
    model, spec = source.vectors, source.spec
    said = {"image": f"{spec.image.name} of timm, {spec.image.image_size} pixels"}
    if spec.image.options:
        said["image"] += f", {json.dumps(dict(spec.image.options), ensure_ascii=False)}"
    if spec.text is not None:
        said["text"] = f"{spec.text.kind}, {spec.text.context_length} tokens of {spec.text.vocab_size}"
    for name, text in said.items():
        yield f"{name} tower", text, sum(p.numel() for part in model.side(name) for p in part.parameters())


def _recipe(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, keys in _RECIPE.items():
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping):
            yield name, _cell(value)


def _results(source: Source) -> Iterator[tuple[str, str, str, str]]:
    """Rows of data set, metric, value and chance, of evaluations of these weights."""
    run = source.checkpoint.parent.parent
    for path in sorted((run / "evaluation").glob("*/results.json")):
        content = _read(path)
        ours = (source.description.step, source.weights)
        if (content.get("step"), content.get("weights", "model")) != ours:
            continue
        for name, result in content.get("results", {}).items():
            for metric, value in result["metrics"].items():
                chance = result["chance"].get(metric)
                yield name, metric, f"{value:.4f}", "" if chance is None else f"{chance:.4f}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cell(value: Any) -> str:
    """In a cell of a Markdown table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "`" + text.replace("|", "\\|").replace("\n", " ") + "`"
