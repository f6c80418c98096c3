"""The loop of a sweep: checkpoint by checkpoint, data set by data set, what is not there yet."""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlm.data import ImageSource
from vlm.distributed import ControlGroup, Topology
from vlm.errors import ConfigError, LostRankError, OutputError, VlmError
from vlm.evaluation.evaluator import Result
from vlm.evaluation.sweep.cache import CachedEmbedder, EmbeddingCache, Work
from vlm.evaluation.sweep.candidates import Candidate, Candidates
from vlm.evaluation.sweep.cell import AGAIN, Cell, main_metric
from vlm.evaluation.sweep.identity import Digests, digest_of
from vlm.evaluation.sweep.questions import (
    Definition,
    Question,
    Settings,
    asked_tasks,
    identities_of,
    said,
)
from vlm.evaluation.sweep.table import write_table
from vlm.files import write_json, writing
from vlm.inference import Loaded, load, versions

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Summary:
    """What became of the cells."""

    done: list[Cell] = field(default_factory=list)
    kept: list[Cell] = field(default_factory=list)
    """Finished before."""
    failed: dict[Cell, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Data sets of which not even the questions could be read."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Checkpoints that a pattern matches and that cannot be read."""
    elsewhere: list[str] = field(default_factory=list)
    """Checkpoints and data sets that another process is at."""


def sweep(
    find: Callable[[], Candidates],
    definitions: Mapping[str, Definition],
    folder: Path,
    settings: Settings,
    topology: Topology,
) -> Summary:
    """Compute the cells that are not there yet, and write the table of all; called on every rank.

    A cell that cannot be computed is written down as failed, and the others go on. Whatever ends the work,
    finished cells stay, and the same call does the rest. Any number of processes may share a folder: what one
    is at, the others leave to it.

    Args:
        find: the checkpoints; called on the first rank.
        definitions: of the data sets, by name.

    Raises:
        ConfigError: nothing is asked.
        OutputError: the disk is full.
    """
    control = ControlGroup()
    digests = Digests(settings.cache / "digests")
    candidates, unreadable = control.first_rank_does(find)
    work = _Sweep(folder, settings, topology, control, digests)
    work.summary.unreadable |= unreadable
    tasks = asked_tasks(definitions, settings, work.summary.broken)
    identities = control.first_rank_does(lambda: identities_of(tasks, definitions, digests))
    questions = {
        name: [
            Question(dataset=name, task=task, definition=definitions[name].about(task), identity=identity)
            for task, identity in zip(own, identities[name], strict=True)
        ]
        for name, own in tasks.items()
    }
    start = settings.first % len(candidates)
    for candidate in candidates[start:] + candidates[:start]:
        work.ask(candidate, questions)
        control.first_rank_does(lambda: write_table(folder))  # what ends the sweep leaves the table so far
    return work.summary


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

    def ask(self, candidate: Candidate, questions: Mapping[str, Sequence[Question]]) -> None:
        """Ask one checkpoint what it was not asked before, by data set."""
        embedder: CachedEmbedder | None = None
        unusable: str | None = None
        for dataset, asked in questions.items():
            with self._claimed(candidate, dataset) as ours:
                if not ours:
                    self.summary.elsewhere.append(f"{candidate.name} {dataset}")
                    continue
                numbers = self.control.first_rank_does(partial(self._open, candidate, asked))
                if numbers and embedder is None and unusable is None:
                    embedder, unusable = self._load(candidate)
                for number in numbers:
                    if embedder is not None:
                        self._ask_one(candidate, asked[number], embedder)
                    else:
                        self._fail(asked[number].of(candidate), str(unusable))

    @contextmanager
    def _claimed(self, candidate: Candidate, dataset: str) -> Iterator[bool]:
        """Whether no other process is at this pair; none will be within."""
        place = self.folder / "claims" / candidate.name / f"{dataset}.lock"
        lock = FileLock(place, timeout=0)
        ours = self.control.first_rank_does(lambda: _taken(lock))
        try:
            yield ours
        finally:
            lock.release()  # of the first rank alone; the system does it for a process that is killed

    def _load(self, candidate: Candidate) -> tuple[CachedEmbedder | None, str | None]:
        """A checkpoint ready to embed, or why no rank can."""
        found: list[Loaded] = []

        def work() -> None:
            found.append(load(candidate.path, weights=candidate.weights, device=self.settings.device))

        try:
            self.control.each_rank_does(work)
        except VlmError as error:
            return None, said(error)
        except Exception as error:
            if self.topology.world_size > 1:
                raise  # the other ranks wait
            logger.warning("%s", traceback.format_exc())
            return None, said(error)
        return self._embedder(candidate, found[0]), None

    def _open(self, candidate: Candidate, questions: Sequence[Question]) -> list[int]:
        """Numbers of the questions that are to be asked now."""
        numbers = []
        for number, question in enumerate(questions):
            cell = question.of(candidate)
            if not question.suits(candidate.model):
                continue
            content = cell.read(self.folder)
            self._refuse_namesake(candidate, content)
            if cell.fingerprint(self.folder, content) == question.fingerprint(candidate, self.settings):
                cell.forget_failure(self.folder)
                self.summary.kept.append(cell)
            elif error := self._wrong_with(question, cell):
                self._fail(cell, error)
            else:
                numbers.append(number)
        return numbers

    def _refuse_namesake(self, candidate: Candidate, content: Mapping[str, Any]) -> None:
        """Cells of another checkpoint that is called the same are not written over."""
        try:
            path, sha256 = content["checkpoint"]["path"], content["checkpoint"]["sha256"]
        except (KeyError, TypeError):
            return
        if path != str(candidate.source.absolute()) and sha256 != candidate.sha256:
            raise ConfigError(
                f"checkpoints: {candidate.source} would be called {candidate.name}, as {path} is, whose "
                f"cells are in out={self.folder}; name another out, or rename the folder of one"
            )

    def _wrong_with(self, question: Question, cell: Cell) -> str | None:
        """What is wrong with what an evaluator reads; looked at once, whoever is asked."""
        if cell.stem not in self._checked:
            try:
                question.task.evaluator.check()
                self._checked[cell.stem] = None
            except VlmError as error:
                self._checked[cell.stem] = said(error)
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

    def _ask_one(self, candidate: Candidate, question: Question, embedder: CachedEmbedder) -> None:
        cell = question.of(candidate)
        begin = time.perf_counter()
        embedder.work = Work()
        try:
            result = question.task.evaluator(embedder)
        except (OutputError, LostRankError):
            raise
        except VlmError as error:
            self._fail(cell, said(error))
            return
        except Exception as error:
            if self.topology.world_size > 1:
                raise  # the other ranks wait within the evaluation
            logger.warning("%s", traceback.format_exc())
            self._fail(cell, said(error))
            return
        seconds = {**embedder.work.seconds, "total": time.perf_counter() - begin}
        about = _about(candidate, question, result, embedder)
        about |= {
            "pictures": self.control.first_rank_does(lambda: self._pictures(result.details)),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "cached": embedder.work.cached,
            "fingerprint": question.fingerprint(candidate, self.settings),
        }
        self.control.first_rank_does(lambda: cell.write(self.folder, result, about))
        self.summary.done.append(cell)
        if self.topology.is_main:
            metric = main_metric(cell.task, result.metrics)
            logger.info("%s: %s %.4f, %.1f s", cell, metric, result.metrics[metric], seconds["total"])

    def _pictures(self, details: Mapping[str, Any]) -> dict[str, Any]:
        """Where a report finds the pictures of outcomes: those of the first data set, which was asked about.

        Image files are listed once for all cells.
        """
        given = details["shards"]
        pictures = [given] if isinstance(given, str | ImageSource) else list(given)
        if not isinstance(pictures[0], ImageSource):
            return {"shards": [part for part in pictures if isinstance(part, str)]}
        files = [list(file) for file in pictures[0].read().files]
        name = f"pictures/{digest_of(files)[:24]}.json"
        if not (self.folder / name).is_file():
            with writing(self.folder / name, then=AGAIN):
                (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
            write_json(self.folder / name, {"files": files}, indent=None)
        return {"list": name}

    def _fail(self, cell: Cell, error: str) -> None:
        self.summary.failed[cell] = error
        if self.topology.is_main:
            cell.write_failure(self.folder, error)
            logger.warning("%s failed: %s", cell, error)


def _about(
    candidate: Candidate, question: Question, result: Result, embedder: CachedEmbedder
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
            "path": str(candidate.source.absolute()),
            "sha256": candidate.sha256,
            "num_parameters": sum(weight.numel() for weight in model.parameters()),
        },
        "preprocess": preprocess.to_mapping(),
        "counts": {"samples": result.num_samples, **counted},
        "data": question.definition,
        "data_sha256": question.identity,
        "versions": versions(),
    }


def _taken(lock: FileLock) -> bool:
    with writing(Path(lock.lock_file), then=AGAIN):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "%s cannot be locked (%s): another process may do the same work", lock.lock_file, error
        )
    return True
