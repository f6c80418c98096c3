"""`vlm shards VERB`: make shards, and look at what is in them."""

from vlm.cli.verbs import hand_over

VERBS = {
    "pack": ("a table or a folder to shards", "input=photos.csv out=shards/photos"),
    "index": ("count samples, note their place", "shards='shards/*.tar'"),
    "check": ("find what is broken or double", "shards='shards/*.tar' captions=txt"),
    "preview": ("a sheet of images with captions", "shards='shards/*.tar' captions=txt"),
    "toy": ("write the toy scenes", "out=data/toy num_train=20000"),
}


def main() -> None:
    """Entry point of `vlm shards`."""
    hand_over("shards", VERBS)
