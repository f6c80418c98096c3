"""One step of a softmax over very many classes on one process: how long, and how much memory.

    python step.py            # all cases in turn, three rounds, each in its own process; prints a table

`sharded` is the project's loss with its sampled, lazily stepped centres, `two ranks` the same over two
processes with half of the batch each; `dense` is what one would write first: all
logits, cross-entropy, AdamW over all centres.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from vlm.distributed import Topology, gather_rows, process_group
from vlm.losses import Margin, class_logits, margin_softmax
from vlm.models import ClassCentres

CLASSES, DIM, ROWS, RATE = 1_000_000, 256, 256, 0.1
STEPS, ROUNDS = 3, 3
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def sharded() -> tuple[list[float], float]:
    before = peak_mib()
    with process_group() as topology:
        return steps_of(topology), peak_mib() - before


def steps_of(topology: Topology) -> list[float]:
    centres = ClassCentres(num_classes=CLASSES, dim=DIM, seed=0, topology=topology)
    margin = Margin(m1=1.0, m2=0.0, m3=0.3, gradient="straight_through")
    seconds = []
    for features, labels in batches(ROWS // topology.world_size):
        start = time.perf_counter()
        labels = gather_rows(labels[:, None])
        classes = centres.sample(labels, rate=RATE)
        logits = class_logits(
            features,
            labels,
            centres=centres.take(classes),
            classes=classes,
            scale=64.0,
            margin=margin,
        )
        margin_softmax(logits).backward()
        centres.step(**ADAMW)
        seconds.append(time.perf_counter() - start)
    return seconds


def dense() -> tuple[list[float], float]:
    before = peak_mib()
    centres = torch.nn.Parameter(torch.empty(CLASSES, DIM).normal_(std=0.01))
    optimizer = torch.optim.AdamW([centres], **ADAMW, fused=True)
    seconds = []
    for features, labels in batches(ROWS):
        start = time.perf_counter()
        cosine = F.normalize(features, dim=1) @ F.normalize(centres, dim=1).T
        cosine = cosine - 0.3 * F.one_hot(labels, CLASSES)
        F.cross_entropy(64 * cosine, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds, peak_mib() - before


def batches(rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        (torch.randn(rows, DIM, requires_grad=True), torch.randint(0, CLASSES, (rows,))) for _ in range(STEPS)
    ]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CASES = {"sharded": sharded, "dense": dense}
TWO_RANKS = ["-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, "sharded"]
COMMANDS = {"sharded": [__file__, "sharded"], "two ranks": TWO_RANKS, "dense": [__file__, "dense"]}


def main() -> None:
    if len(sys.argv) > 1:
        seconds, mib = CASES[sys.argv[1]]()
        print(json.dumps({"seconds": statistics.median(seconds[1:]), "mib": mib}))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    for number in range(ROUNDS):
        for name, command in COMMANDS.items():
            out = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
            found[name].append(json.loads(out.stdout.splitlines()[-1]))
            print(number + 1, name, found[name][-1], flush=True)
    for name, results in found.items():
        mib, seconds = (statistics.median(r[key] for r in results) for key in ("mib", "seconds"))
        print(f"{name:<10} {seconds:8.2f} s a step   {mib:10,.0f} MiB a rank")
    for ranks in (1, 2):
        states, sampled = (bytes_ * CLASSES * DIM / ranks / 2**20 for bytes_ in (12, 8 * RATE))
        print(
            f"{ranks} ranks: 12 C d / W {states:,.0f} MiB, sampled rows and their gradient {sampled:,.0f} MiB"
        )


if __name__ == "__main__":
    main()
