"""`vlm bench VERB`: what losses, steps and loading take on this machine, and would take on many."""

import importlib
import sys

VERBS = {
    "loss": ("memory and time of each way to compute it", "rows=4096 peer=open_clip"),
    "step": ("samples/s, the split of a step, MFU", "experiment=toy"),
    "scale": ("the loss up to thousands of ranks, computed", "fabric_gb_per_s=50"),
    "data": ("where loading spends its time", "experiment=clip_vit_b32 data.train.shards='shards/*.tar'"),
}

HELP = """usage: vlm bench VERB [key=value ...]

{verbs}

`vlm bench VERB --help` shows a verb's keys and their values.
"""


def main() -> None:
    """Entry point of `vlm bench`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        lines = (f"  {n:<6} {text:<42} vlm bench {n} {example}" for n, (text, example) in VERBS.items())
        print(HELP.format(verbs="\n".join(lines)))
        return
    if verb not in VERBS:
        sys.exit(f"vlm bench: no verb {verb!r}; there are {', '.join(VERBS)}")
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    importlib.import_module(f"vlm.cli.bench.{verb}").main()
