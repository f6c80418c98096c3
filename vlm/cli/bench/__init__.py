"""`vlm bench VERB`: what losses, steps and loading take on this machine, and would take on many."""

from vlm.cli.verbs import hand_over

VERBS = {
    "loss": ("memory and time of each way to compute it", "rows=4096 peer=open_clip"),
    "step": ("samples/s, the split of a step, MFU", "experiment=toy"),
    "scale": ("the loss up to thousands of ranks, computed", "fabric_gb_per_s=50"),
    "data": ("where loading spends its time", "experiment=clip_vit_b32 data.train.shards='shards/*.tar'"),
}


def main() -> None:
    """Entry point of `vlm bench`."""
    hand_over("bench", VERBS)
