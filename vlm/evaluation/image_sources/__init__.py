"""Data sets whose pictures are plain files: where the files lie, and what is said of each."""

from vlm.evaluation.image_sources.caption_lines import CaptionLines
from vlm.evaluation.image_sources.chinese_clip import ChineseClipImages
from vlm.evaluation.image_sources.coco import CocoImages
from vlm.evaluation.image_sources.folder import ImageFolder
from vlm.evaluation.image_sources.table import ImageTable
from vlm.evaluation.image_sources.xm3600 import Xm3600Images
from vlm.evaluation.image_sources.xtd import XtdImages

__all__ = [
    "CaptionLines",
    "ChineseClipImages",
    "CocoImages",
    "ImageFolder",
    "ImageTable",
    "Xm3600Images",
    "XtdImages",
]
