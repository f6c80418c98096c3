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
from vlm.evaluation.evaluator import Evaluator, Patterns
from vlm.evaluation.linear_probe import LinearProbe
from vlm.evaluation.nearest_neighbours import NearestNeighbours
from vlm.evaluation.retrieval import Retrieval
from vlm.evaluation.zero_shot import ZeroShot

CLASSIFICATION = "zeroshot_classification"
RETRIEVAL = "zeroshot_retrieval"
CASES = "image_caption_selection"
CAPTIONING = "captioning"
KNN = "knn"
PROBE = "linear_probe"
TASKS = (CLASSIFICATION, RETRIEVAL, CASES, CAPTIONING, KNN, PROBE)
"""What can be asked, by the names that `Result.task` has too."""

MAIN_METRIC = {
    CLASSIFICATION: "acc1",
    RETRIEVAL: "image_retrieval_recall@1",
    CASES: "acc",
    CAPTIONING: "CIDEr",
    KNN: "knn_acc1",
    PROBE: "lp_acc1",
}
"""The one that stands for a task in a table."""

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
    """Pictures with one class each: names by language, and where there are training pictures, probes.

    Args:
        test: patterns of the shards that are scored.
        label: field of a sample that holds its class.
        names: of each language, the class names.
        templates: of each language, one or several ensembles of prompts.
        train: patterns of training shards, for nearest neighbours and the linear probe.

    Raises:
        ConfigError: a language has names and no templates, or the other way round.
    """

    test: Patterns
    label: str
    names: Mapping[str, ClassSource]
    templates: Templates
    train: Patterns | None = None

    def __post_init__(self) -> None:
        for language in sorted({*self.names} ^ {*self.templates}):
            has, lacks = ("names", "templates") if language in self.names else ("templates", "names")
            raise ConfigError(f"{language!r} has {has} and no {lacks}; give {lacks}.{language} as well")

    def tasks(self) -> list[Task]:
        named = [
            Task(
                name=CLASSIFICATION,
                language=language,
                templates=ensemble,
                evaluator=ZeroShot(self.test, classes, label=self.label, templates=sentences),
            )
            for language, classes in self.names.items()
            for ensemble, sentences in self.templates[language].items()
        ]
        return named + self._probes()

    def _probes(self) -> list[Task]:
        if self.train is None:
            return []
        knn = NearestNeighbours(self.train, self.test, label=self.label, k=20, temperature=0.07)
        probe = LinearProbe(
            *(self.train, self.test),
            label=self.label,
            l2=[1e-8, 1e-6, 1e-4, 1e-2, 1.0],
            validation_share=0.1,
            seed=0,
        )
        return [
            Task(name=name, language=None, templates=None, evaluator=evaluator)
            for name, evaluator in ((KNN, knn), (PROBE, probe))
        ]


@dataclass(frozen=True, kw_only=True)
class RetrievalData:
    """Pictures with captions: to find either by the other, and to write captions anew.

    Args:
        pictures: patterns of the shards.
        captions: of each language, the fields of a sample that hold its captions; every one counts.
        relevance: as `Retrieval` takes it.
        captioning: whether models with a text decoder are asked for captions.
    """

    pictures: Patterns
    captions: Mapping[str, str | Sequence[str]]
    relevance: str | None = None
    captioning: bool = True

    def tasks(self) -> list[Task]:
        asked: list[tuple[str, str, Evaluator]] = []
        for language, fields in self.captions.items():
            asked.append((RETRIEVAL, language, Retrieval(self.pictures, fields, relevance=self.relevance)))
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
        return ClassificationData(
            test=test,
            label="cls",
            names={self.language: ClassesFromText(str(folder.names))},
            templates={self.language: {"own": str(folder.templates)}},
            train=folder.shards("train") if folder.has("train") else None,
        ).tasks()
