"""`vlm caption`: captions of pictures by a model with a text decoder."""

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.cli.device import check_batches, usable_device
from vlm.settings import build, resolve

_SHOWN = 5


@command("caption")
def main(config: DictConfig) -> None:
    """Entry point of `vlm caption`."""
    values = resolve(config)
    check_batches(values)
    decoding = build(values["decoding"], "decoding")
    from vlm.distributed import ControlGroup, process_group
    from vlm.evaluation import write_caption_page
    from vlm.inference import (
        EMA,
        WEIGHTS,
        Embedder,
        latest_checkpoint,
        load,
        pictures,
        read_captions,
        read_description,
        write_captions,
    )

    out, page = Path(values["out"]), values["report"]
    with process_group() as topology:
        loaded = load(values["run"], weights=values["weights"], device=usable_device(values["device"]))
        group = ControlGroup()
        source = group.first_rank_does(lambda: pictures(values["images"]))
        embedder = Embedder(
            loaded,
            topology,
            batch_size=values["batch_size"],
            num_workers=values["num_workers"],
            bf16=values["bf16"],
            progress=True,
        )
        checkpoint = read_description(latest_checkpoint(values["run"]))
        made_by = {
            "run": checkpoint.files[EMA if values["weights"] == "ema" else WEIGHTS]["sha256"],
            "images": values["images"],
            "decoding": dataclasses.asdict(decoding),
        }
        done = write_captions(
            embedder, source, decoding, out, topology=topology, group=group, made_by=made_by
        )
        if not topology.is_main:
            return
        lines = read_captions(out)
        if page is not None:
            write_caption_page(Path(page), source, lines, title=Path(values["run"]).resolve().name)
    for line in [line for line in lines if line.caption is not None][:_SHOWN]:
        print(f"{line.key}: {line.caption}")
    before = f", {done.before} lines were there" if done.before else ""
    print(f"{done.written} captions: {out}{before}")
    if done.unreadable:
        print(f"{done.unreadable} pictures cannot be read; their lines say why")
    if page is not None:
        print(f"pictures: {page}  (open it in a browser)")


if __name__ == "__main__":
    main()
