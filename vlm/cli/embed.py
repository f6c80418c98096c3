"""`vlm embed`: the features of shards by a trained tower."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlm.cli.command import command, take_data_as_shards
from vlm.cli.device import check_batches, usable_device
from vlm.errors import ConfigError
from vlm.settings import resolve


def main() -> None:
    """Entry point of `vlm embed`."""
    take_data_as_shards()
    _embed()


@command("embed")
def _embed(config: DictConfig) -> None:
    values = resolve(config)
    check_batches(values)
    _check_source(values)
    from vlm.distributed import process_group
    from vlm.inference.embed_shards import embed_shards

    out = Path(values["out"])
    with process_group() as topology:
        tower = _tower(values, usable_device(values["device"]))
        manifest = embed_shards(
            tower,
            values["data"]["shards"],
            out,
            topology,
            batch_size=values["batch_size"],
            num_workers=values["num_workers"],
            bf16=values["bf16"],
        )
        if not topology.is_main:
            return
    print(
        f"{manifest.num_rows} samples in {len(manifest.shards)} shards, {manifest.dim} dimensions: {out}\n"
        f"broken samples, their features are zero: {manifest.num_broken}"
    )


def _check_source(values: dict[str, Any]) -> None:
    if (values["run"] is None) == (values["model"] is None):
        raise ConfigError(
            "set either run=, a run or a checkpoint, or model=, a recipe with pretrained weights"
        )
    given = [name for name, value in values["preprocess"].items() if value is not None]
    if values["run"] is not None and given:
        raise ConfigError(
            f"preprocess.{given[0]} is set, but run={values['run']} has its own preprocessing; leave it out"
        )
    missing = [name for name, value in values["preprocess"].items() if value is None]
    if values["model"] is not None and missing:
        raise ConfigError(f"model= needs preprocess.{missing[0]}, as the tower was trained with; set it")


def _tower(values: dict[str, Any], device: str) -> Any:
    from vlm.data import Preprocess
    from vlm.inference.embed_shards import PictureTower
    from vlm.models import ModelSpec

    if values["run"] is not None:
        return PictureTower.of_run(values["run"], device=device)
    image = ModelSpec.from_mapping(values["model"]).image
    preprocess = Preprocess(image_size=image.image_size, **values["preprocess"])
    return PictureTower.of_timm(image, preprocess, device=device)


if __name__ == "__main__":
    main()
