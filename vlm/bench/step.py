"""`vlm bench step`: samples/s of a training step on random data, and where its time goes."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from vlm.bench.processes import last_line, require_open_clip, run_process
from vlm.bench.report import Report
from vlm.bench.step_report import require_comparable, step_report
from vlm.distributed import Topology
from vlm.errors import ConfigError
from vlm.models import CausalTextSpec, ModelSpec
from vlm.objectives import SigLipObjective
from vlm.training import Run
from vlm.training.agreement import check_held
from vlm.training.launch import start_ranks
from vlm.training.module import TrainingModule
from vlm.training.plan import planned_spec
from vlm.training.run import build_module
from vlm.training.work import Work
from vlm.types import Batch

PEER = Path(__file__).with_name("step_peer.py")
DONE = (
    "normalises bytes, encodes, takes the loss, clips, AdamW (fused), clamps the temperature, by Lightning."
)


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """How to measure a step.

    Args:
        steps: that count, in each round, after `warmup` others.
        text_length: tokens of every text; None: the most there can be.
        peak_tflops: that MFU is a share of; None: of the GPU's data sheet, or a product measured on the CPU.
        peer: another project whose step is measured in the same rounds, on a model of the same size.
        peer_python: interpreter of an environment that has it; None: this one.
        peer_text_length: tokens of its texts, which it fills up to its context; None: as many as here.
        peer_compile: compile its model, which its trainer offers.
        out: folder for `step.json` and `step.md`; None: the table is only printed.
    """

    steps: int
    warmup: int
    rounds: int
    text_length: int | None
    peak_tflops: int | float | None
    peer: Literal["open_clip"] | None
    peer_python: str | None
    peer_text_length: int | None
    peer_compile: bool
    out: str | None

    def __post_init__(self) -> None:
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bench.{name}={getattr(self, name)} must be at least 1")
        for name in ("text_length", "peer_text_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"bench.{name}={value} must be at least 2, a token and the end, or null")
        if self.warmup < 0:
            raise ConfigError(f"bench.warmup={self.warmup} must not be negative")

    def run(self, run: Run, arguments: list[str], tell: Callable[[str], None]) -> Report:
        """Measure in rounds; with a peer each in a process of its own.

        Args:
            arguments: of the command, for the processes.

        Raises:
            ConfigError: the peer is not to be had, or cannot build such a model.
        """
        found: dict[str, list[dict[str, Any]]] = {"vlm": []}
        if run.trainer.world_size > 1:  # Lightning would start the others without the verb
            raise ConfigError(
                f"trainer.devices={run.trainer.devices} trainer.num_nodes={run.trainer.num_nodes} are more "
                "than one rank, and vlm bench step measures one; set both to 1"
            )
        peer = None if self.peer is None else self._peer_case(run)
        if peer is not None:
            require_open_clip(self.peer_python, key="bench.peer_python")
            found["open_clip"] = []
        for number in range(self.rounds):
            found["vlm"].append(measure(run, self) if peer is None else _in_process(arguments))
            if peer is not None:
                found["open_clip"].append(
                    last_line(run_process(self.peer_python, str(PEER), json.dumps(peer)), "open_clip's step")
                )
                require_comparable(found["vlm"][-1], found["open_clip"][-1])
            for name, results in found.items():
                rate = results[-1]["samples_per_s"]
                tell(f"round {number + 1}/{self.rounds}  {name:<10} {rate:10.1f} samples/s")
        return step_report(
            found, rows=run.data.global_batch_size, steps=self.steps, precision=run.trainer.precision
        )

    def _peer_case(self, run: Run) -> dict[str, Any]:
        spec = planned_spec(run)
        text = spec.text_tower
        if not isinstance(text, CausalTextSpec):
            raise ConfigError(
                f"bench.peer={self.peer} has no text tower of model.text.kind={text.kind}; use causal"
            )
        return {
            "embed_dim": spec.embed_dim,
            "image": {
                "name": spec.image.name,
                "size": spec.image.image_size,
                "options": dict(spec.image.options),
            },
            "text": {
                "context_length": self.peer_text_length or self.text_length or text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
            },
            "init_logit_bias": spec.init_logit_bias,
            "sigmoid": isinstance(run.objective, SigLipObjective),
            "optimizer": {
                name: getattr(run.optimizer, name) for name in ("lr", "betas", "eps", "weight_decay")
            },
            "compile": self.peer_compile,
            "rows": run.data.global_batch_size,
            "bf16": run.trainer.precision != "32-true",
            "device": "cpu" if run.trainer.accelerator == "cpu" or not torch.cuda.is_available() else "cuda",
            "clip": run.trainer.gradient_clip,
            "steps": self.steps,
            "warmup": self.warmup,
        }


def measure(run: Run, bench: StepBench) -> dict[str, Any]:
    """The project's own step, by Lightning as in training, on random rows that are on the device already."""
    check_held(run)
    engine = run.trainer.engine()
    module = build_module(run, planned_spec(run).without_pretrained(), engine)
    timing = _Timing(bench.warmup)
    trainer = run.trainer.build(engine, logger=False, callbacks=[timing])
    run.data.check_world_size(trainer.world_size)
    start_ranks(trainer)
    run.trainer.tower_options.check_compiler(trainer.strategy.root_device)
    run.objective.setup(Topology.current())
    rows = run.data.global_batch_size // trainer.world_size
    length = bench.text_length or run.model.text_tower.context_length
    device = trainer.strategy.root_device
    batches = _Batches(_random_batch(module.spec, rows, length, device), bench.warmup + bench.steps)
    trainer.fit(module, train_dataloaders=batches)
    work = Work.of(module.spec, device)
    work.add(batches.batch)
    peak, origin = _peak_tflops(bench, work, device)
    split = {part: seconds / timing.seconds for part, seconds in timing.split.items()}
    return {
        "samples_per_s": rows * trainer.world_size * bench.steps / timing.seconds,
        "split": split | {"rest": 1 - sum(split.values())},
        "flops_per_sample": work.read().get("tflops", 0.0) * 1e12 / rows,
        "peak_tflops": peak,
        "peak_from": origin,
        "text_length": length,
        "parameters": sum(p.numel() for p in module.towers.parameters()),
        "ranks": trainer.world_size,
        "threads": torch.get_num_threads(),
        "step": DONE,
    }


class _Timing(L.Callback):
    """Seconds of the steps after the warm-up, and of their parts."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds = 0.0
        self.split: dict[str, float] = {}
        self._start = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        for part in ("image", "text"):
            projection = getattr(module.towers, f"{part}_projection")
            projection.register_forward_hook(lambda *_, part=part: module.clock.mark(part))
        self._begin(module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if batch_index + 1 == self.warmup:
            self._begin(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        self.split = module.clock.read()
        # From the last projection to the end of the towers: the text's vectors are made unit.
        self.split["text"] = self.split.get("text", 0.0) + self.split.pop("encode", 0.0)
        _wait(module.device)
        self.seconds = time.perf_counter() - self._start

    def _begin(self, module: TrainingModule) -> None:
        module.clock.read()
        _wait(module.device)
        self._start = time.perf_counter()


class _Batches:
    """The same batch again and again."""

    def __init__(self, batch: Batch, number: int) -> None:
        self.batch = batch
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.number)


def _random_batch(spec: ModelSpec, rows: int, length: int, device: torch.device) -> Batch:
    """Noise: of zeros, a processor would make less work."""
    generator = torch.Generator().manual_seed(0)
    size, text = spec.image.image_size, spec.text_tower
    assert text.vocab_size is not None
    assert text.eot_id is not None
    image = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, text.vocab_size - 2, (rows, length), generator=generator)
    tokens[:, -1] = text.eot_id
    return Batch(
        image=image.to(device),
        text=tokens.to(device),
        caption_id=torch.arange(rows, device=device),
        key=[str(row) for row in range(rows)],
    )


def _peak_tflops(bench: StepBench, work: Work, device: torch.device) -> tuple[float, str]:
    if bench.peak_tflops is not None:
        return float(bench.peak_tflops), "bench.peak_tflops"
    if work.peak is not None:
        return work.peak / 1e12, "data sheet, dense bfloat16"
    size, seconds = 2048, []
    matrix = torch.randn(size, size, device=device)
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        matrix @ matrix
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12, f"best of 6 float32 products of {size} x {size}, measured"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _in_process(arguments: list[str]) -> dict[str, Any]:
    """One round of this command, without the peer."""
    with tempfile.TemporaryDirectory() as folder:
        alone = ["bench.peer=null", "bench.rounds=1", f"bench.out={folder}"]
        command = ["-m", "vlm.cli.main", "bench", "step", *arguments, *alone]
        done: subprocess.CompletedProcess[str] = run_process(sys.executable, *command)
        if done.returncode:
            raise ConfigError((done.stderr.strip().splitlines() or ["the step failed"])[-1])
        result: dict[str, Any] = json.loads(Path(folder, "step.json").read_text())["raw"]["vlm"][0]
        return result
