"""`vlm negatives`: hard negative captions, as sidecars of shards."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vlm.cli.command import command, take_data_as_shards
from vlm.errors import ConfigError
from vlm.settings import build, resolve

if TYPE_CHECKING:
    from vlm.curation.negatives import Made


def main() -> None:
    """Entry point of `vlm negatives`."""
    take_data_as_shards()
    _make()


@command("negatives")
def _make(config: DictConfig) -> None:
    values = resolve(config)
    if values["language"] not in ("en", "zh", "auto"):
        raise ConfigError(f"language={values['language']!r} is not one of 'en', 'zh', 'auto'")
    from vlm.curation.negatives import Filters, make_negatives

    made = make_negatives(
        values["data"]["shards"],
        build(values["maker"], "maker"),
        captions=values["captions"],
        language=values["language"],
        name=values["name"],
        out=values["out"],
        report=Path(values["report"]),
        filters=Filters(per_caption=values["per_caption"], length_ratio=values["length_ratio"]),
        seed=values["seed"],
        workers=values["workers"],
    )
    print(_summary(made))


def _summary(made: "Made") -> str:
    counts = made.counts
    lines = [
        f"{counts.kept} negatives of {counts.captions} captions in {counts.samples} samples; "
        f"{counts.without_caption} samples have no caption",
        f"kept by the filters: {counts.kept / max(1, counts.made):.1%}",
    ]
    if made.new_captions:
        lines.append(
            f"this time: {made.new_negatives} in {made.seconds:.1f} s, "
            f"{made.new_negatives / made.seconds:.0f} a second"
        )
    for rule in counts.rules:
        found = counts.of_rule(rule).most_common()
        lines.append(f"  {rule:<20}{', '.join(f'{count} {outcome}' for outcome, count in found)}")
    lines += [
        f"negatives: {made.places[0]}{', ...' if len(made.places) > 1 else ''}",
        f"report: {made.report}  (open it in a browser)",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
