"""`vlm shards VERB`: make shards, and look at what is in them."""

import importlib
import sys

VERBS = {
    "pack": ("a table or a folder to shards", "input=photos.csv out=shards/photos"),
    "index": ("count samples, note their place", "shards='shards/*.tar'"),
    "check": ("find what is broken or double", "shards='shards/*.tar' captions=txt"),
    "preview": ("a sheet of images with captions", "shards='shards/*.tar' captions=txt"),
    "toy": ("write the toy scenes", "out=data/toy num_train=20000"),
}

HELP = """usage: vlm shards VERB [key=value ...]

{verbs}

`vlm shards VERB --help` shows a verb's keys and their values.
"""


def main() -> None:
    """Entry point of `vlm shards`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        lines = (f"  {n:<8} {text:<33} vlm shards {n} {example}" for n, (text, example) in VERBS.items())
        print(HELP.format(verbs="\n".join(lines)))
        return
    if verb not in VERBS:
        sys.exit(f"vlm shards: no verb {verb!r}; there are {', '.join(VERBS)}")
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    importlib.import_module(f"vlm.cli.shards.{verb}").main()
