"""Image-text shards: their index, the order of their samples, and the loaders of training and evaluation."""

from vlm.data.cache import ShardCache
from vlm.data.reader import EvalBatch, eval_loader, read_images, read_records
from vlm.data.remote import Remote
from vlm.data.samples import lookup, record_captions
from vlm.data.shards import ShardSet, open_shards
from vlm.data.sources import Source
from vlm.data.train import TrainData, TrainSet
from vlm.data.transforms import Augment, Preprocess

__all__ = [
    "Augment",
    "EvalBatch",
    "Preprocess",
    "Remote",
    "ShardCache",
    "ShardSet",
    "Source",
    "TrainData",
    "TrainSet",
    "eval_loader",
    "lookup",
    "open_shards",
    "read_images",
    "read_records",
    "record_captions",
]
