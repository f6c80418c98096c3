"""The loop of a sweep: checkpoint by checkpoint, data set by data set, what is not there yet."""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.data import ImageSource
from vlm.distributed import ControlGroup, Topology
from vlm.errors import ConfigError, LostRankError, OutputError, VlmError
from vlm.evaluation.datasets import TASKS, DataSet, Task
from vlm.evaluation.evaluator import Result
from vlm.evaluation.sweep.cache import CachedEmbedder, EmbeddingCache, Work
from vlm.evaluation.sweep.candidates import Candidate
from vlm.evaluation.sweep.cell import FORMAT, Cell, main_metric
from vlm.evaluation.sweep.identity import Digests, digest_of
from vlm.evaluation.sweep.table import write_table
from vlm.inference import Loaded, load, read_description, versions
from vlm.models import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked, and how it is computed.

    Args:
        tasks: those of `TASKS` that are asked; None: all.
        languages: of questions with words, those that are asked; None: all.
        cache: the folder of vectors, which sweeps may share.
        device, batch_size, num_workers, bf16: as of `Embedder`.
        part: number of this part, from 0, and how many parts there are: each takes every so manieth pair of a
            checkpoint and a data set.

    Raises:
        ConfigError: there is no such task.
    """

    tasks: Sequence[str] | None
    languages: Sequence[str] | None
    cache: Path
    device: str
    batch_size: int
    num_workers: int
    bf16: bool
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for task in self.tasks or ():
            if task not in TASKS:
                raise ConfigError(f"tasks: there is no {task!r}; there are {', '.join(TASKS)}")

    def asks(self, task: Task) -> bool:
        """Whether a question is among those that are asked."""
        in_language = self.languages is None or task.language is None or task.language in self.languages
        return in_language and (self.tasks is None or task.name in self.tasks)


@dataclass(frozen=True)
class Definition:
    """A data set, and the values that it was made from."""

    node: Any
    dataset: DataSet


@dataclass(kw_only=True)
class Summary:
    """What became of the cells of this part."""

    done: list[Cell] = field(default_factory=list)
    kept: list[Cell] = field(default_factory=list)
    """Finished before."""
    failed: dict[Cell, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A question about a data set, whoever is asked."""

    dataset: str
    task: Task
    definition: Any
    identity: str
    """Digest of the definition, with the bytes of its files."""

    def of(self, candidate: Candidate) -> Cell:
        return Cell(
            checkpoint=candidate.name,
            dataset=self.dataset,
            task=self.task.name,
            language=self.task.language,
            templates=self.task.templates,
        )

    def fingerprint(self, candidate: Candidate, settings: Settings) -> str:
        asked = [self.task.name, self.task.language, self.task.templates]
        return digest_of([FORMAT, candidate.made_by, settings.bf16, self.identity, asked])

    def suits(self, spec: ModelSpec) -> bool:
        """Whether a model has the parts that are asked about."""
        return all(getattr(spec, part) is not None for part in self.task.evaluator.needs)


def sweep(
    find: Callable[[], list[Candidate]],
    definitions: Mapping[str, Definition],
    folder: Path,
    settings: Settings,
    topology: Topology,
) -> Summary:
    """Compute the cells that are not there yet, and write the table of all; called on every rank.

    A cell that cannot be computed is written down as failed, and the others go on. Whatever ends the work,
    finished cells stay, and the same call does the rest.

    Args:
        find: the checkpoints; called on the first rank.
        definitions: of the data sets, by name.

    Raises:
        ConfigError: nothing is asked, or a data set's definition is wrong.
        OutputError: the disk is full.
    """
    control = ControlGroup()
    digests = Digests(settings.cache / "digests")
    candidates = control.first_rank_does(find)
    asked = _asked(definitions, settings)
    index, count = settings.part
    pairs = [(candidate, dataset) for candidate in candidates for dataset in asked][index::count]
    identities = control.first_rank_does(
        lambda: {dataset: digest_of(digests.of_definition(definitions[dataset].node)) for _, dataset in pairs}
    )
    work = _Sweep(folder, settings, topology, control, digests)
    for candidate in candidates:
        questions = [
            _Question(
                dataset=dataset,
                task=task,
                definition=definitions[dataset].node,
                identity=identities[dataset],
            )
            for asking, dataset in pairs
            if asking is candidate
            for task in asked[dataset]
        ]
        work.ask(candidate, questions)
    control.first_rank_does(lambda: write_table(folder))
    return work.summary


def _asked(definitions: Mapping[str, Definition], settings: Settings) -> dict[str, list[Task]]:
    """The questions about each data set."""
    offered = {name: definition.dataset.tasks() for name, definition in definitions.items()}
    asked = {name: [task for task in tasks if settings.asks(task)] for name, tasks in offered.items()}
    found = {name: tasks for name, tasks in asked.items() if tasks}
    if not found:
        there_is = sorted(
            {f"{t.name} ({t.language or 'any language'})" for ts in offered.values() for t in ts}
        )
        raise ConfigError(
            f"nothing is asked: tasks={settings.tasks}, languages={settings.languages}, datasets "
            f"{', '.join(definitions) or 'none'}, which offer {', '.join(there_is) or 'nothing'}"
        )
    return found


class _Sweep:
    """The work of one process."""

    def __init__(
        self, folder: Path, settings: Settings, topology: Topology, control: ControlGroup, digests: Digests
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.topology = topology
        self.control = control
        self.digests = digests
        self.summary = Summary()
        self._checked: dict[str, str | None] = {}

    def ask(self, candidate: Candidate, questions: Sequence[_Question]) -> None:
        """Ask one checkpoint what it was not asked before."""
        spec = self.control.first_rank_does(lambda: read_description(candidate.path).model)
        open_ones = self.control.first_rank_does(lambda: self._open(candidate, questions, spec))
        if not open_ones:
            return
        try:
            loaded = load(candidate.path, weights=candidate.weights, device=self.settings.device)
        except VlmError as error:
            for number in open_ones:
                self._fail(questions[number].of(candidate), _said(error))
            return
        embedder = self._embedder(candidate, loaded)
        for number in open_ones:
            self._ask_one(candidate, questions[number], embedder)

    def _open(self, candidate: Candidate, questions: Sequence[_Question], spec: ModelSpec) -> list[int]:
        """Numbers of the questions that are to be asked now."""
        numbers = []
        for number, question in enumerate(questions):
            cell = question.of(candidate)
            if not question.suits(spec):
                continue
            if cell.fingerprint(self.folder) == question.fingerprint(candidate, self.settings):
                self.summary.kept.append(cell)
            elif error := self._wrong_with(question, cell):
                self._fail(cell, error)
            else:
                numbers.append(number)
        return numbers

    def _wrong_with(self, question: _Question, cell: Cell) -> str | None:
        """What is wrong with what an evaluator reads; looked at once, whoever is asked."""
        if cell.stem not in self._checked:
            try:
                question.task.evaluator.check()
                self._checked[cell.stem] = None
            except VlmError as error:
                self._checked[cell.stem] = _said(error)
        return self._checked[cell.stem]

    def _embedder(self, candidate: Candidate, loaded: Loaded) -> CachedEmbedder:
        return CachedEmbedder(
            *(loaded, self.topology),
            batch_size=self.settings.batch_size,
            num_workers=self.settings.num_workers,
            bf16=self.settings.bf16,
            progress=True,
            cache=EmbeddingCache(self.settings.cache / "vectors"),
            digests=self.digests,
            made_by=digest_of([candidate.made_by, self.settings.bf16]),
        )

    def _ask_one(self, candidate: Candidate, question: _Question, embedder: CachedEmbedder) -> None:
        cell = question.of(candidate)
        begin = time.perf_counter()
        embedder.work = Work()
        try:
            result = question.task.evaluator(embedder)
        except (OutputError, LostRankError):
            raise
        except VlmError as error:
            self._fail(cell, _said(error))
            return
        except Exception as error:
            if self.topology.world_size > 1:
                raise  # the other ranks wait within the evaluation
            logger.warning("%s", traceback.format_exc())
            self._fail(cell, _said(error))
            return
        seconds = {**embedder.work.seconds, "total": time.perf_counter() - begin}
        about = _about(candidate, question, result, embedder)
        about |= {
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "cached": embedder.work.cached,
            "fingerprint": question.fingerprint(candidate, self.settings),
        }
        self.control.first_rank_does(lambda: cell.write(self.folder, result, about))
        self.summary.done.append(cell)
        if self.topology.is_main:
            metric = main_metric(cell.task, result.metrics)
            logger.info("%s: %s %.4f, %.1f s", cell, metric, result.metrics[metric], seconds["total"])

    def _fail(self, cell: Cell, error: str) -> None:
        self.summary.failed[cell] = error
        if self.topology.is_main:
            cell.write_failure(self.folder, error)
            logger.warning("%s failed: %s", cell, error)


def _about(
    candidate: Candidate, question: _Question, result: Result, embedder: CachedEmbedder
) -> dict[str, Any]:
    """What a cell says beside its result."""
    model, preprocess = embedder.loaded.model, embedder.loaded.preprocess
    counted = {name[4:]: value for name, value in result.details.items() if name.startswith("num_")}
    return {
        "model": candidate.run,
        "pretrained": candidate.part,
        "checkpoint": {
            "name": candidate.name,
            "run": candidate.run,
            "step": candidate.step,
            "weights": candidate.weights,
            "path": str(candidate.path.absolute()),
            "sha256": candidate.sha256,
            "num_parameters": sum(weight.numel() for weight in model.parameters()),
        },
        "preprocess": preprocess.to_mapping(),
        "counts": {"samples": result.num_samples, **counted},
        "data": question.definition,
        "data_sha256": question.identity,
        "pictures": _pictures(result.details),
        "versions": versions(),
    }


def _pictures(details: Mapping[str, Any]) -> dict[str, Any]:
    """Where a report finds the pictures of outcomes: those of the first data set, which was asked about."""
    given = details["shards"]
    pictures = [given] if isinstance(given, str | ImageSource) else list(given)
    if isinstance(pictures[0], ImageSource):
        return {"files": {str(place): list(file) for place, file in enumerate(pictures[0].read().files)}}
    return {"shards": [part for part in pictures if isinstance(part, str)]}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
