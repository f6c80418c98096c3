"""Toy scenes as a part of a configuration."""

from dataclasses import dataclass
from pathlib import Path

from vlm.data.toy.shards import write_toy


@dataclass(frozen=True, kw_only=True)
class ToyScenes:
    """Writes the toy scenes into `out` unless they are there; the rest is for `write_toy`."""

    out: str
    num_train: int
    num_test: int
    num_held_out: int
    num_choice: int
    image_size: int
    seed: int

    def make(self) -> None:
        """Write the shards, with a progress bar."""
        write_toy(
            Path(self.out),
            num_train=self.num_train,
            num_test=self.num_test,
            num_held_out=self.num_held_out,
            num_choice=self.num_choice,
            image_size=self.image_size,
            seed=self.seed,
            progress=True,
        )
