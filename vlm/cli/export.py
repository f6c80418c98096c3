"""`vlm export`: make a checkpoint into files of another library."""

from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import resolve


@command("export")
def main(config: DictConfig) -> None:
    """Entry point of `vlm export`."""
    values = resolve(config)
    from vlm.inference.export import export_model

    out = Path(values["out"])
    exported = export_model(values["run"], out, format=values["format"], weights=values["weights"])
    rows = [
        ("from", f"{exported.source.checkpoint}, weights={values['weights']}"),
        ("kind", exported.kind),
        ("left out", ", ".join(exported.left_out) or "nothing"),
        ("check", str(exported.check)),
    ]
    print("\n".join(f"{name:<9} {value}" for name, value in rows))
    print(f"\n{out} is written. README.md in it is a model card; its license is yours to set.")


if __name__ == "__main__":
    main()
