"""`vlm import`: make a model of another project into a checkpoint of this one."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vlm.cli.command import command
from vlm.files import writing
from vlm.settings import build, resolve

RECIPE = Path("model", "imported.yaml")
"""Beside the checkpoint: its model, for `train --config-dir OUT model=imported`."""


@command("import")
def main(config: DictConfig) -> None:
    """Entry point of `vlm import`."""
    values = resolve(config)
    source, out = Path(values.pop("from")), Path(values.pop("out"))
    given = build(values, "")
    from vlm.inference.foreign import import_model

    spec, facts = import_model(source, out, given)
    with writing(out / RECIPE):
        (out / RECIPE).parent.mkdir()
        (out / RECIPE).write_text(OmegaConf.to_yaml(OmegaConf.create(spec.to_mapping())), encoding="utf-8")
    print("\n".join(f"{name:<17} {value}" for name, value in facts))
    print(
        f"\n{out} is a checkpoint now:\n"
        f"  vlm evaluate run={out} suite=zero_shot suite.root=...\n"
        f"  train --config-dir {out} model=imported init_from={out} ..."
    )


if __name__ == "__main__":
    main()
