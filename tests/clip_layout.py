"""Data sets in CLIP_benchmark's layout."""

from pathlib import Path

from tiny import COLOURS, write_tiny_shards


def write_layout(root: Path, *, kind: str | None) -> None:
    """A data set as CLIP_benchmark stores it: shards 0.tar, 1.tar, … without an index."""
    write_tiny_shards(root / "written", num_samples=12)
    (root / "test").mkdir()
    for number, shard in enumerate(sorted((root / "written").glob("*.tar"))):
        shard.rename(root / "test" / f"{number}.tar")
    (root / "test" / "nshards.txt").write_text("3\n")
    (root / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} square\n{c}\n")
    if kind is not None:
        (root / "dataset_type.txt").write_text(kind)
