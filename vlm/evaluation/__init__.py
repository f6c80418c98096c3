"""Evaluations on embeddings, and what is written about them."""

from vlm.evaluation.caption_page import write_caption_page
from vlm.evaluation.caption_sources import CaptionsFromCoco, CaptionsFromShards
from vlm.evaluation.captioning import Captioning
from vlm.evaluation.cases import CasesFromFiles, CasesFromShards
from vlm.evaluation.class_names import (
    ClassesFromJson,
    ClassesFromJsonLists,
    ClassesFromShards,
    ClassesFromText,
    ClassesListed,
)
from vlm.evaluation.clip_benchmark import clip_benchmark
from vlm.evaluation.compositional import Compositional
from vlm.evaluation.datasets import (
    CaseData,
    ClassificationData,
    ClipBenchmarkData,
    DataSet,
    PairData,
    RetrievalData,
)
from vlm.evaluation.evaluator import Evaluator, Result, check_parts, run_suite
from vlm.evaluation.few_shot import FewShotRidge
from vlm.evaluation.image_retrieval import ImageRetrieval
from vlm.evaluation.image_sources import (
    CaptionLines,
    ChineseClipImages,
    CocoImages,
    ImageFolder,
    ImageTable,
    Xm3600Images,
    XtdImages,
)
from vlm.evaluation.linear_probe import LinearProbe
from vlm.evaluation.multi_label import MultiLabelZeroShot
from vlm.evaluation.nearest_neighbours import NearestNeighbours
from vlm.evaluation.pair_scoring import PairScoring
from vlm.evaluation.reconstruction import Reconstruction
from vlm.evaluation.report import write_report
from vlm.evaluation.results import write_results
from vlm.evaluation.retrieval import Retrieval
from vlm.evaluation.zero_shot import ZeroShot

__all__ = [
    "CaptionLines",
    "Captioning",
    "CaptionsFromCoco",
    "CaptionsFromShards",
    "CaseData",
    "CasesFromFiles",
    "CasesFromShards",
    "ChineseClipImages",
    "ClassesFromJson",
    "ClassesFromJsonLists",
    "ClassesFromShards",
    "ClassesFromText",
    "ClassesListed",
    "ClassificationData",
    "ClipBenchmarkData",
    "CocoImages",
    "Compositional",
    "DataSet",
    "Evaluator",
    "FewShotRidge",
    "ImageFolder",
    "ImageRetrieval",
    "ImageTable",
    "LinearProbe",
    "MultiLabelZeroShot",
    "NearestNeighbours",
    "PairData",
    "PairScoring",
    "Reconstruction",
    "Result",
    "Retrieval",
    "RetrievalData",
    "Xm3600Images",
    "XtdImages",
    "ZeroShot",
    "check_parts",
    "clip_benchmark",
    "run_suite",
    "write_caption_page",
    "write_report",
    "write_results",
]
