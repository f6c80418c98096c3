"""`vlm shards VERB`: make toy shards, index shards."""

import sys

import hydra
from omegaconf import DictConfig

from vlm.cli.errors import user_errors
from vlm.settings import build, config_dir, resolve

HELP = """usage: vlm shards VERB [key=value ...]

  toy      write the toy scenes:            vlm shards toy out=data/toy num_train=20000
  index    count samples, note their place: vlm shards index shards='shards/{00000..00041}.tar'

`vlm shards VERB --cfg job` prints a verb's keys and their values.
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


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="shards_toy")
@user_errors
def toy(config: DictConfig) -> None:
    """Write the toy scenes."""
    values = resolve(config)
    del values["paths"]
    build(values, "").make()
    print(f"toy scenes are in {values['out']}; train on them with: train experiment=toy")


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="shards_index")
@user_errors
def index(config: DictConfig) -> None:
    """Count the samples of shards and note where each begins."""
    from vlm.data import open_shards

    shards = open_shards(resolve(config)["shards"], key="shards")
    print(f"{shards.num_samples} samples in {len(shards.urls)} shards")


if __name__ == "__main__":
    main()
