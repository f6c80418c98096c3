"""The checkpoints of a sweep: runs, their steps, and models of other projects."""

import hashlib
import importlib.util
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from vlm.errors import ConfigError, VlmError
from vlm.evaluation.sweep.identity import digest_of
from vlm.inference import (
    DESCRIPTION,
    EMA,
    TOKENIZER,
    WEIGHTS,
    latest_checkpoint,
    read_description,
    run_of,
    weights_file,
)
from vlm.inference.foreign import Given, import_model
from vlm.models import ModelSpec

logger = logging.getLogger(__name__)

_FOREIGN = ("config.json", "open_clip_config.json")
"""A folder with one of these and no description is a model of another project."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint, and what a table calls it."""

    run: str
    part: str
    """Which checkpoint of the run, such as `step_00000800`; empty where there is only one."""
    path: Path
    source: Path
    """What was named; `path` but for models of other projects, which are imported."""
    weights: str
    """As `load` takes them."""
    step: int
    model: ModelSpec
    sha256: str
    """Of the weights."""
    made_by: str
    """sha256 of what makes vectors: weights, tokenizer, description and preprocessing."""

    @property
    def name(self) -> str:
        """Run and part."""
        return f"{self.run}/{self.part}" if self.part else self.run


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """What a bare state dict of open_clip does not say.

    Args:
        model_configs: open_clip's folder of that name; None: that of the installed package.
        tokenizer_path: CLIP's file of merges, or another tokenizer; None: that of the installed package.
    """

    model_configs: str | None
    tokenizer_path: str | None

    def given(self, model: str) -> Given:
        """Facts about a model of this name.

        Raises:
            ConfigError: the files are not there.
        """
        installed = importlib.util.find_spec("open_clip")
        places = installed.submodule_search_locations if installed else None
        package = Path(places[0]) if places else None
        configs = self.model_configs or (package / "model_configs" if package else None)
        merges = self.tokenizer_path or (package / "bpe_simple_vocab_16e6.txt.gz" if package else None)
        if configs is None or merges is None:
            raise ConfigError(
                f"checkpoints: {model!r} is a model of open_clip, which is not installed; set "
                "open_clip.model_configs to its folder of that name, and open_clip.tokenizer_path"
            )
        config = Path(configs) / f"{model}.json"
        if not config.is_file():
            raise ConfigError(f"checkpoints: there is no {config}, which would describe {model!r}")
        return Given(model_config=str(config), tokenizer_path=str(merges))


class Candidates(NamedTuple):
    """What some patterns name."""

    found: list[Candidate]
    unreadable: dict[str, str]
    """Of what a pattern matches, paths of checkpoints that cannot be read, and why."""


def find_candidates(
    checkpoints: str | Sequence[str], *, weights: str, open_clip: OpenClip, imported: Path
) -> Candidates:
    """The checkpoints that some patterns name, each once, in their order.

    A pattern names folders of runs (their last checkpoint is taken), of checkpoints, or of transformers or
    open_clip, or as `MODEL:FILE` a state dict of open_clip.

    Args:
        weights: "model", or "ema" where a checkpoint has them.
        imported: where models of other projects are put, once.

    Raises:
        ConfigError: `weights` is neither, a pattern names nothing, or two checkpoints would have one name.
        CheckpointError: a checkpoint that is named without a pattern cannot be read.
    """
    weights_file(weights)
    patterns = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if not patterns:
        raise ConfigError("checkpoints is empty; name runs or checkpoints, as in checkpoints=['runs/*']")
    finder = _Finder(weights, open_clip, imported)
    found: dict[Path, Candidate] = {}
    for pattern in patterns:
        for candidate in finder.of_pattern(pattern):
            found.setdefault(candidate.path.resolve(), candidate)
    candidates = list(found.values())
    name, count = Counter(candidate.name for candidate in candidates).most_common(1)[0]
    if count > 1:
        places = ", ".join(str(c.source) for c in candidates if c.name == name)
        raise ConfigError(
            f"checkpoints: {count} are called {name!r} ({places}); rename the folder or file of one"
        )
    return Candidates(candidates, finder.unreadable)


class _Finder:
    """Looks for checkpoints; arguments as of `find_candidates`."""

    def __init__(self, weights: str, open_clip: OpenClip, imported: Path) -> None:
        self.weights, self.open_clip, self.imported = weights, open_clip, imported
        self.unreadable: dict[str, str] = {}

    def of_pattern(self, pattern: str) -> list[Candidate]:
        model, colon, file = pattern.partition(":")
        if colon and not Path(pattern).exists():
            found = [Path(path) for path in sorted(glob(file))]
            if not found:
                raise ConfigError(
                    f"checkpoints: {pattern!r} is read as MODEL:FILE, and there is no file {file!r}; weights "
                    "are not downloaded by a tag, save the state dict of the model to a file first"
                )
            given = self.open_clip.given(model)
            return [self._foreign(path, given) for path in found]
        if Path(pattern).exists():
            candidate = self._of_path(Path(pattern))
            candidates = [candidate] if candidate is not None else []
        else:
            candidates = list(self._readable(sorted(glob(pattern))))
        if not candidates:
            raise ConfigError(f"checkpoints: {pattern!r} {self._lacks(pattern)}")
        return candidates

    def _lacks(self, pattern: str) -> str:
        if any((path / DESCRIPTION).is_file() for path in Path(pattern).glob("*")):
            return f"is a folder of checkpoints; did you mean '{pattern.rstrip('/')}/*'?"
        if self.unreadable:
            path, error = next(iter(self.unreadable.items()))
            return f"holds no checkpoint that can be read: {path}: {error}"
        what = "holds no checkpoint" if glob(pattern) else "matches nothing"
        return f"{what}; name a run, a checkpoint, or a pattern of them"

    def _readable(self, paths: Sequence[str]) -> Iterator[Candidate]:
        """Of what a pattern matches; one checkpoint that cannot be read does not stop the others."""
        for path in paths:
            try:
                candidate = self._of_path(Path(path))
            except VlmError as error:
                logger.warning("%s is left out: %s", path, error)
                self.unreadable[path] = str(error)
            else:
                if candidate is not None:
                    yield candidate

    def _of_path(self, path: Path) -> Candidate | None:
        """None for what is no model: a pattern such as runs/* may match anything."""
        if (path / DESCRIPTION).is_file() or (path / "checkpoints").is_dir():
            return _own(latest_checkpoint(path), self.weights)
        if path.is_dir() and any((path / name).is_file() for name in _FOREIGN):
            return self._foreign(path, Given())
        return None

    def _foreign(self, path: Path, given: Given) -> Candidate:
        """A model of another project, imported where it is not yet, or where a file of it has changed."""
        named = [
            path,
            *(Path(file) for file in (given.model_config, given.tokenizer_path) if file is not None),
        ]
        sizes = [
            [str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns]
            for place in named
            for file in (sorted(place.iterdir()) if place.is_dir() else [place])
            if file.is_file()
        ]
        run, part, step = _named(path)
        digest = hashlib.sha256(repr((sizes, given)).encode()).hexdigest()
        out = self.imported / f"{'_'.join(filter(None, (run, part)))}_{digest[:12]}"
        self.imported.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{out}.lock"):
            if not (out / DESCRIPTION).is_file():
                logger.info("importing %s", path)
                try:
                    import_model(path, out, given)
                except ConfigError as error:
                    raise ConfigError(
                        f"checkpoints: {error}, as keys of vlm import from={path} out=FOLDER, and name FOLDER"
                    ) from error
        return replace(_own(out, self.weights), run=run, part=part, step=step, source=path)


def _named(path: Path) -> tuple[str, str, int]:
    """Run, part and step of a model of another project; open_clip writes `<run>/checkpoints/epoch_<n>.pt`."""
    if path.is_dir():
        return _name_of(path), "", 0
    place = Path(os.path.abspath(path))
    if place.parent.name != "checkpoints":
        return path.stem, "", 0
    number = re.search(r"\d+$", path.stem)
    return place.parent.parent.name, path.stem, int(number.group()) if number else 0


def _own(path: Path, weights: str) -> Candidate:
    description = read_description(path)
    file = EMA if weights == "ema" and EMA in description.files else WEIGHTS
    run = run_of(path)
    part = path.name if run != path else ""
    facts = {
        "files": {
            kept: description.files[kept]["sha256"] for kept in (file, TOKENIZER) if kept in description.files
        },
        "model": description.model.to_mapping(),
        "preprocess": description.preprocess.to_mapping(),
    }
    return Candidate(
        run=_name_of(run),
        part=f"{part}_ema" if file == EMA else part,
        path=path,
        source=path,
        weights="ema" if file == EMA else "model",
        step=description.step,
        model=description.model,
        sha256=description.files[file]["sha256"],
        made_by=digest_of(facts),
    )


def _name_of(folder: Path) -> str:
    """Also of `..`, which is no name of a file."""
    return os.path.basename(os.path.abspath(folder))
