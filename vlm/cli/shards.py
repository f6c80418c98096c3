"""`vlm shards VERB`: make toy shards, index shards."""

import sys

from omegaconf import DictConfig

from vlm.cli.command import command
from vlm.settings import build, resolve

HELP = """usage: vlm shards VERB [key=value ...]

  toy      write the toy scenes:            vlm shards toy out=data/toy num_train=20000
  index    count samples, note their place: vlm shards index shards='shards/{00000..00041}.tar'

`vlm shards VERB --help` shows a verb's keys and their values.
"""


def main() -> None:
    """Entry point of `vlm shards`."""
    verbs = {"toy": toy, "index": index}
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(HELP)
        return
    if verb not in verbs:
        sys.exit(f"vlm shards: no verb {verb!r}; there are {', '.join(verbs)}")
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    verbs[verb]()


@command("shards_toy")
def toy(config: DictConfig) -> None:
    """Write the toy scenes."""
    values = resolve(config)
    del values["paths"]
    build(values, "").make()
    print(f"toy scenes are in {values['out']}; train on them with: train experiment=toy")


@command("shards_index")
def index(config: DictConfig) -> None:
    """Count the samples of shards and note where each begins."""
    from vlm.data import open_shards

    shards = open_shards(resolve(config)["shards"], key="shards")
    print(f"{shards.num_samples} samples in {len(shards.urls)} shards")


if __name__ == "__main__":
    main()
