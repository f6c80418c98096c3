"""What a sweep asks about each data set, whoever is asked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, VlmError
from vlm.evaluation.datasets import TASKS, DataSet, Task
from vlm.evaluation.sweep.candidates import Candidate
from vlm.evaluation.sweep.cell import FORMAT, Cell
from vlm.evaluation.sweep.identity import VECTORS, Digests, digest_of, part_for
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
        first: of the checkpoints, the one to begin with, counted round and round; processes that begin with
            different ones rarely load the same.

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
    first: int = 0

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

    def about(self, task: Task) -> Any:
        """The values that matter to one task."""
        return part_for(self.node, task.language, task.templates)


@dataclass(frozen=True, kw_only=True)
class Question:
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
        return digest_of([FORMAT, VECTORS, candidate.made_by, settings.bf16, self.identity, asked])

    def suits(self, spec: ModelSpec) -> bool:
        """Whether a model has the parts that are asked about."""
        return all(getattr(spec, part) is not None for part in self.task.evaluator.needs)


def identities_of(
    tasks: Mapping[str, Sequence[Task]], definitions: Mapping[str, Definition], digests: Digests
) -> dict[str, list[str]]:
    """Of each task, the digest of its part of the definition, with the bytes of the files in it."""
    return {
        name: [
            digest_of(digests.of_data(definitions[name].about(task), definitions[name].dataset))
            for task in own
        ]
        for name, own in tasks.items()
    }


def asked_tasks(
    definitions: Mapping[str, Definition], settings: Settings, broken: dict[str, str]
) -> dict[str, list[Task]]:
    """What is asked about each data set; what is wrong with one goes into `broken`.

    Raises:
        ConfigError: nothing is asked, no data set has a language that is, or the only data set is broken.
    """
    offered: dict[str, list[Task]] = {}
    for name, definition in definitions.items():
        try:
            offered[name] = definition.dataset.tasks()
        except VlmError as error:
            if len(definitions) == 1:
                raise
            logger.warning("data set %s is left out: %s", name, error)
            broken[name] = said(error)
    there = {task.language for tasks in offered.values() for task in tasks} - {None}
    for language in settings.languages or ():
        if language not in there:
            known = ", ".join(sorted(map(str, there))) or "none"
            raise ConfigError(f"languages: none of the data sets has {language!r}; there is {known}")
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


def said(error: Exception) -> str:
    """An error as a failed cell has it."""
    return f"{type(error).__name__}: {error}"
