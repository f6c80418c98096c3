"""Toy scenes: drawn shapes with English and Chinese captions and a held-out split of attributes."""

from vlm.data.toy.recipe import ToyScenes
from vlm.data.toy.shards import write_toy

__all__ = ["ToyScenes", "write_toy"]
