"""Image-text shards: their index, the order of their samples, and the loaders of training and evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.data.cache import ShardCache
    from vlm.data.image_files import ImageFile, ImageSet, ImageSource, image_file_loader
    from vlm.data.images import data_uri, thumbnail
    from vlm.data.reader import EvalBatch, eval_loader, read_images, read_records
    from vlm.data.remote import Remote
    from vlm.data.samples import lookup, record_captions
    from vlm.data.shards import ShardSet, open_shards
    from vlm.data.sources import Source
    from vlm.data.train import TrainData, TrainSet
    from vlm.data.transforms import Augment, Preprocess

# Imported when first asked for: tools that pack and index shards do without torch.
_PLACES = {
    "Augment": "transforms",
    "EvalBatch": "reader",
    "ImageFile": "image_files",
    "ImageSet": "image_files",
    "ImageSource": "image_files",
    "Preprocess": "transforms",
    "Remote": "remote",
    "ShardCache": "cache",
    "ShardSet": "shards",
    "Source": "sources",
    "TrainData": "train",
    "TrainSet": "train",
    "data_uri": "images",
    "eval_loader": "reader",
    "image_file_loader": "image_files",
    "lookup": "samples",
    "open_shards": "shards",
    "read_images": "reader",
    "read_records": "reader",
    "record_captions": "samples",
    "thumbnail": "images",
}

__all__ = [
    "Augment",
    "EvalBatch",
    "ImageFile",
    "ImageSet",
    "ImageSource",
    "Preprocess",
    "Remote",
    "ShardCache",
    "ShardSet",
    "Source",
    "TrainData",
    "TrainSet",
    "data_uri",
    "eval_loader",
    "image_file_loader",
    "lookup",
    "open_shards",
    "read_images",
    "read_records",
    "record_captions",
    "thumbnail",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"vlm.data.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'vlm.data' has no attribute {name!r}")
