"""What is done with a damaged input: the commands that users type, run in this process."""

import contextlib
import csv
import io
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from PIL import Image

import vlm
from fuzz.world import BATCH_SIZE, RUN, SAMPLES
from vlm.cli import main as vlm_command
from vlm.cli import train as train_command
from vlm.errors import VlmError
from vlm.training.broken import BrokenSamples
from vlm.types import Batch

_TRACE = re.compile(r"Traceback \(most recent call last\)|Error executing job")


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    `ending` is the same wherever it runs; `message` quotes libraries, whose words change with their versions.
    """

    ending: str
    message: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Command:
    """Something a user does.

    Args:
        rewrites: patterns of the files that it is meant to write anew, or to delete.
    """

    name: str
    run: Callable[[], Outcome]
    rewrites: tuple[str, ...] = ()


@dataclass
class _Typed:
    """What a command left behind."""

    printed: str = ""
    errors: str = ""
    warnings: list[str] = field(default_factory=list)
    exit_code: int | str | None = None

    @property
    def message(self) -> str:
        return self.exit_code if isinstance(self.exit_code, str) else self.errors.strip()


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _type(entry: Callable[[], None], *words: str) -> _Typed:
    """Run a command; an exception that the command lets through goes on."""
    typed, warnings = _Typed(), _Warnings()
    out, errors = io.StringIO(), io.StringIO()
    logging.getLogger("vlm").addHandler(warnings)
    try:
        with (
            mock.patch.object(sys, "argv", list(words)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            entry()
    except SystemExit as end:
        typed.exit_code = end.code
    finally:
        logging.getLogger("vlm").removeHandler(warnings)
    shown = [text for text in warnings.texts if "waiting for data" not in text]  # depends on the machine
    typed.printed, typed.errors, typed.warnings = out.getvalue(), errors.getvalue(), shown
    assert not _TRACE.search(typed.message), f"a stack trace, which ends in: {typed.message[-600:]}"
    return typed


def _refused(message: str) -> Outcome:
    """The outcome of a command that ended with a message."""
    kind = re.match(r"\w+Error(?=: )", message)
    return Outcome(
        kind[0] if kind else "refused by Hydra", message.removeprefix(f"{kind[0]}: " if kind else ""), True
    )


@contextlib.contextmanager
def _watched() -> Iterator[list[Batch]]:
    """The batches that training takes note of."""
    batches: list[Batch] = []
    add = BrokenSamples.add

    def watching(self: BrokenSamples, batch: Batch, *, step: int) -> None:
        batches.append(batch)
        add(self, batch, step=step)

    with mock.patch.object(BrokenSamples, "add", watching):
        yield batches


def _train(*words: str, run: str = "runs/new") -> Outcome:
    with _watched() as batches:
        typed = _type(train_command.main, "train", "--config-dir", "recipes", "experiment=base", *words)
    if typed.exit_code:
        return _refused(typed.message)
    return Outcome(
        _accounted(batches, Path(run), typed.warnings), typed.warnings[0] if typed.warnings else ""
    )


def _accounted(batches: list[Batch], run: Path, warnings: list[str]) -> str:
    """Every sample that the shards are known to have was used, or is counted and named as broken."""
    sizes = json.loads(Path("shards/sizes.json").read_text(encoding="utf-8"))
    known = sum(sizes[path.name] for path in Path("shards").glob("*.tar"))
    assert known == SAMPLES or any("shards/0" in text for text in warnings), (
        f"{known} samples, and no word of it"
    )
    epoch = batches[: known // BATCH_SIZE]
    used = {row for batch in epoch for row in zip(batch["key"], map(_digest, batch["image"]), strict=True)}
    lost = len(epoch) * BATCH_SIZE - len(used) - sum(len(batch["broken"]) for batch in epoch)
    assert lost <= 0, f"{lost} samples are neither used nor named"
    broken = [sample for batch in batches for sample in batch["broken"]]
    if broken:
        assert all(sample.shard and sample.key and sample.reason for sample in broken)
        with (run / "broken_samples.csv").open(newline="", encoding="utf-8") as file:
            listed = {(row.get("shard"), row.get("key")) for row in csv.DictReader(file)}
        assert {(sample.shard, sample.key) for sample in broken} <= listed
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        logged = [row["data/substituted"] for row in csv.DictReader(file) if row["data/substituted"]]
    assert float(logged[-1]) == len(broken)
    counts = Counter(str(sample.cause) for sample in broken)
    named = ", ".join(f"{cause} {count}" for cause, count in sorted(counts.items()))
    of = "" if known == SAMPLES else f" of {known} known"
    return f"trained; samples replaced{of}: {named or 'none'}"


def _digest(image: torch.Tensor) -> int:
    return hash(image.numpy().tobytes())


def _vlm(*words: str) -> _Typed:
    return _type(vlm_command.main, "vlm", *words)


def _check() -> Outcome:
    typed = _vlm("shards", "check", "shards=shards/*.tar", "captions=[txt,json.caption_zh]", "workers=1")
    if isinstance(typed.exit_code, str):
        return _refused(typed.message)
    found = json.loads(Path("shards_check.json").read_text(encoding="utf-8"))
    counts = {kind: count for kind, count in found["counts"].items() if count}
    assert bool(typed.exit_code) == bool(found["errors"])
    for kind in counts:
        assert found["named"][kind], f"{kind} names no sample"
    first = next((found["named"][kind][0] for kind in counts), "")
    return Outcome("; ".join(f"{kind}: {count}" for kind, count in counts.items()) or "nothing found", first)


def _index() -> Outcome:
    typed = _vlm("shards", "index", "shards=shards/*.tar")
    if typed.exit_code:
        return _refused(typed.message)
    return Outcome(typed.printed.splitlines()[0], typed.warnings[0] if typed.warnings else "")


def _preview() -> Outcome:
    typed = _vlm(
        "shards", "preview", "shards=shards/*.tar", "captions=[txt,json.caption_zh]",
        "num_samples=64", "columns=16", "image_size=16",
    )  # fmt: skip
    if typed.exit_code:
        return _refused(typed.message)
    Image.open("preview.png").load()
    return Outcome(typed.printed.strip())


def _evaluate() -> Outcome:
    typed = _vlm("evaluate", f"run={RUN}", "device=cpu", "out=scores")
    if typed.exit_code:
        return _refused(typed.message)
    assert Path("scores/report.html").is_file()
    return Outcome("evaluated", typed.warnings[0] if typed.warnings else "")


def _load() -> Outcome:
    try:
        model, preprocess, tokenizer = vlm.load(RUN)
    except VlmError as error:
        return _refused(f"{type(error).__name__}: {error}")
    with torch.no_grad():
        model.encode_image(preprocess(Image.new("RGB", (20, 20))).unsqueeze(0))
        model.encode_text(tokenizer(["number 1 is red"]))
    return Outcome("loaded")


def _pack(table: str) -> Outcome:
    typed = _vlm(
        "shards", "pack", f"input={table}", "out=packed", "workers=1", "max_skipped=0.5", "verify=decode"
    )
    if typed.exit_code:
        return _refused(typed.message)
    lines = typed.printed.splitlines()
    ending = re.sub(r" \(.*", "", lines[0])
    skipped = Path("packed/skipped.tsv")
    first = skipped.read_text(encoding="utf-8").splitlines()[1] if skipped.exists() else ""
    return Outcome("; ".join([ending, *lines[1:-1]]), first.replace("\t", " "))


def _import(*words: str) -> Outcome:
    typed = _vlm("import", "from=foreign", "out=imported", *words)
    return _refused(typed.message) if typed.exit_code else Outcome("imported")


# An index that is not complete is completed.
_SIZES = ("shards/sizes.json",)

TRAIN = Command("train", _train, rewrites=_SIZES)
RESUME = Command(
    "train run.resume=true",
    lambda: _train("run.name=done", "checkpoint.every_n_steps=1", "run.resume=true", run=RUN),
    # the folder of a run that goes on: its log, the files of its start, and checkpoints that were damaged
    rewrites=(f"{RUN}/*.*", f"{RUN}/checkpoints/*"),
)
CHECK = Command("vlm shards check", _check)
INDEX = Command("vlm shards index", _index, rewrites=("shards/sizes.json", "shards/*.index.parquet"))
PREVIEW = Command("vlm shards preview", _preview, rewrites=_SIZES)
EVALUATE = Command("vlm evaluate", _evaluate)
LOAD = Command("vlm.load", _load)
PACK_CSV = Command("vlm shards pack", lambda: _pack("photos.csv"))
PACK_JSONL = Command("vlm shards pack", lambda: _pack("photos.jsonl"))
PACK_PARQUET = Command("vlm shards pack", lambda: _pack("photos.parquet"))
IMPORT = Command("vlm import", _import)


def train_with(*words: str, run: str = "runs/new") -> Command:
    """`train` with something else on the command line, to the folder `run` if it gets there."""
    return Command("train", lambda: _train(*words, run=run), rewrites=_SIZES)


def evaluate_with(*words: str) -> Command:
    """`vlm evaluate` with something else on the command line."""

    def run() -> Outcome:
        typed = _vlm("evaluate", f"run={RUN}", "device=cpu", "out=scores", *words)
        return _refused(typed.message) if typed.exit_code else Outcome("evaluated")

    return Command("vlm evaluate", run)


def shards_with(verb: str, *words: str) -> Command:
    """A verb of `vlm shards` with what is typed behind it."""

    def run() -> Outcome:
        typed = _vlm("shards", verb, *words)
        return _refused(typed.message) if typed.exit_code else Outcome("done")

    return Command(f"vlm shards {verb}", run)


def start_run() -> None:
    """Train the run that the cases go on from, to its end, with a checkpoint after each step."""
    outcome = _train("run.name=done", "checkpoint.every_n_steps=1", run=RUN)
    assert not outcome.failed, outcome.message
