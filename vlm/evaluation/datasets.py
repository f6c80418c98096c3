"""Data sets of a sweep: what can be asked about each, in which languages and with which templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from vlm.errors import ConfigError
from vlm.evaluation.caption_sources import CaptionsFromShards
from vlm.evaluation.captioning import Captioning
from vlm.evaluation.cases import CaseSource
from vlm.evaluation.class_names import ClassesFromText, ClassSource
from vlm.evaluation.clip_benchmark import ClipBenchmarkFolder
from vlm.evaluation.compositional import Compositional
from vlm.evaluation.evaluator import Evaluator
from vlm.evaluation.few_shot import FewShotRidge
from vlm.evaluation.linear_probe import LinearProbe
from vlm.evaluation.multi_label import MultiLabelZeroShot
from vlm.evaluation.nearest_neighbours import NearestNeighbours
from vlm.evaluation.pair_scoring import PairScoring
from vlm.evaluation.retrieval import Retrieval
from vlm.evaluation.zero_shot import ZeroShot
from vlm.inference import Pictures

CLASSIFICATION = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
CASES = "image_caption_selection"
CAPTIONING = "captioning"
KNN = "knn"
PROBE = "linear_probe"
FEW_SHOT = "few_shot"
MULTI_LABEL = "multilabel_classification"
PAIRS = "pair_scoring"
TASKS = (CLASSIFICATION, MULTI_LABEL, RETRIEVAL, CASES, CAPTIONING, PAIRS, KNN, PROBE, FEW_SHOT)
"""What can be asked, by the names that `Result.task` has too."""

MAIN_METRICS = {
    CLASSIFICATION: ("acc1",),
    RETRIEVAL: ("image_retrieval_recall@1",),
    CASES: ("acc", "group_score"),
    CAPTIONING: ("CIDEr",),
    KNN: ("knn_acc1",),
    PROBE: ("lp_acc1",),
    MULTI_LABEL: ("mean_average_precision",),
    PAIRS: ("auc", "kendall_tau_c", "clip_score"),
}
"""What stands for a task in a table: the first that there is."""

Templates = Mapping[str, Mapping[str, str | Sequence[str]]]
"""Of each language, by name: sentences, or the text file that they stand in."""

_GREEDY = {
    "strategy": "greedy",
    "beams": 1,
    "top_p": 1.0,
    "temperature": 1.0,
    "max_length": None,
    "seed": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question about a data set."""

    name: str
    """One of `TASKS`."""
    language: str | None
    """None where the question has no words."""
    templates: str | None
    """The name of the templates, None where there are none."""
    evaluator: Evaluator


@runtime_checkable
class DataSet(Protocol):
    """A data set that a sweep can ask about."""

    def tasks(self) -> list[Task]:
        """Every question that there is; nothing is read yet."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """Pictures with a class each: names by language, and where there are training pictures, probes.

    Args:
        test: the pictures that are scored.
        label: field of a sample that holds its class, or with `several` a list of classes.
        names: of each language, the class names.
        templates: of each language, one or several ensembles of prompts.
        train: training pictures, for nearest neighbours, the linear probe and few shots.
        shots: pictures of each class that few shots take; numbers above the smallest class are left out.
        several: whether a picture may have several classes; there are no probes then.

    Raises:
        ConfigError: a language has names and no templates, or the other way round.
    """

    test: Pictures
    label: str
    names: Mapping[str, ClassSource]
    templates: Templates
    train: Pictures | None = None
    shots: Sequence[int] = (1, 2, 4, 8)
    several: bool = False

    def __post_init__(self) -> None:
        for language in sorted({*self.names} ^ {*self.templates}):
            has, lacks = ("names", "templates") if language in self.names else ("templates", "names")
            raise ConfigError(f"{language!r} has {has} and no {lacks}; give {lacks}.{language} as well")

    def tasks(self) -> list[Task]:
        evaluator = MultiLabelZeroShot if self.several else ZeroShot
        named = [
            Task(
                name=MULTI_LABEL if self.several else CLASSIFICATION,
                language=language,
                templates=ensemble,
                evaluator=evaluator(self.test, classes, label=self.label, templates=sentences),
            )
            for language, classes in self.names.items()
            for ensemble, sentences in self.templates[language].items()
        ]
        return named + self._probes()

    def _probes(self) -> list[Task]:
        if self.train is None or self.several:
            return []
        knn = NearestNeighbours(self.train, self.test, label=self.label, k=20, temperature=0.07)
        probe = LinearProbe(
            *(self.train, self.test),
            label=self.label,
            l2=[1e-8, 1e-6, 1e-4, 1e-2, 1.0],
            validation_share=0.1,
            seed=0,
        )
        few = FewShotRidge(
            *(self.train, self.test), label=self.label, shots=self.shots, l2=1.0, seeds=[0, 1, 2, 3, 4]
        )
        return [
            Task(name=name, language=None, templates=None, evaluator=evaluator)
            for name, evaluator in ((KNN, knn), (PROBE, probe), (FEW_SHOT, few))
        ]


@dataclass(frozen=True, kw_only=True)
class RetrievalData:
    """Pictures with captions: to find either by the other, and to write captions anew.

    Args:
        pictures: the data set.
        captions: of each language, the fields of a sample that hold its captions; every one counts.
        relevance, merge_captions: as `Retrieval` takes them.
        captioning: whether models with a text decoder are asked for captions.
    """

    pictures: Pictures
    captions: Mapping[str, str | Sequence[str]]
    relevance: str | None = None
    merge_captions: bool = False
    captioning: bool = True

    def tasks(self) -> list[Task]:
        asked: list[tuple[str, str, Evaluator]] = []
        for language, fields in self.captions.items():
            found = Retrieval(
                self.pictures, fields, relevance=self.relevance, merge_captions=self.merge_captions
            )
            asked.append((RETRIEVAL, language, found))
            if self.captioning and language in ("en", "zh"):  # words are told apart in these
                source = CaptionsFromShards(self.pictures, fields)
                written = Captioning(source, decoding=_GREEDY, language=language, num_examples=6)
                asked.append((CAPTIONING, language, written))
        return [
            Task(name=name, language=language, templates=None, evaluator=evaluator)
            for name, language, evaluator in asked
        ]


@dataclass(frozen=True, kw_only=True)
class CaseData:
    """Pictures with true and false captions.

    Args:
        cases: of each language, where they come from.
    """

    cases: Mapping[str, CaseSource]

    def tasks(self) -> list[Task]:
        return [
            Task(name=CASES, language=language, templates=None, evaluator=Compositional(source))
            for language, source in self.cases.items()
        ]


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Pictures with captions that people may have rated.

    Args:
        pictures: the data set.
        captions: of each language, the field that holds the captions.
        rating: field with a number for each caption, or None.
    """

    pictures: Pictures
    captions: Mapping[str, str]
    rating: str | None = None

    def tasks(self) -> list[Task]:
        return [
            Task(
                name=PAIRS,
                language=language,
                templates=None,
                evaluator=PairScoring(self.pictures, field, rating=self.rating),
            )
            for language, field in self.captions.items()
        ]


@dataclass(frozen=True, kw_only=True)
class ClipBenchmarkData:
    """A folder in CLIP_benchmark's layout; with the split `train`, probes too.

    Args:
        root: the folder with `classnames.txt`, or with `dataset_type.txt` that says retrieval.
        language: of its names, templates or captions.

    Raises:
        ConfigError: a file of the layout is missing.
    """

    root: str
    language: str = "en"

    def tasks(self) -> list[Task]:
        folder = ClipBenchmarkFolder(Path(self.root))
        test = folder.shards("test")
        if folder.kind == "retrieval":
            return RetrievalData(pictures=test, captions={self.language: "txt"}).tasks()
        several = folder.kind == "multilabel"
        return ClassificationData(
            test=test,
            label="npy" if several else "cls",
            several=several,
            names={self.language: ClassesFromText(str(folder.names))},
            templates={self.language: {"own": str(folder.templates)}},
            train=folder.shards("train") if folder.has("train") else None,
        ).tasks()
