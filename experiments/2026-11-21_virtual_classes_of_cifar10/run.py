"""Virtual classes of CIFAR-10, from an untrained tower on, beside labels: every stage by its command.

    python run.py --data FOLDER --out FOLDER --seed 0

FOLDER/cifar10 of `--data` holds `cifar10-{train,test}-*.tar.gz`. Stages that are done are not done again.
One thread each: two seeds side by side on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

LABELS = ["data.train.labels=cls", "objective.num_classes=10"]
# A fifth of the pictures, hardly cut: a tower fits them in the same number of steps.
FEW = ["data.train.shards='${paths.data}/cifar10/cifar10-train-0000{0,1}.tar.gz'"]
FEW += ["data.augment.crop_scale=[0.6,1.0]", "data.augment.color_jitter=0.2"]
PLAIN = ["objective.m3=0.0"]
SUPERVISED = {
    "supervised_margin": [],
    "few_margin": FEW,
    "few_plain": [*FEW, *PLAIN],
    "supervised_plain": PLAIN,
}
METRICS = {"knn": "knn_acc1", "linear_probe": "lp_acc1", "image_retrieval": "image_to_image_recall@1"}
K = 1000


class Road:
    """The runs of one seed."""

    def __init__(self, data: Path, out: Path, seed: int, steps: int) -> None:
        self.data, self.out, self.seed, self.steps = data, out / f"seed{seed}", seed, steps
        self.out.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, *overrides: str) -> Path:
        run = self.out / "runs" / name
        common = [f"paths.data={self.data}", f"paths.runs={run.parent}", f"run.name={name}"]
        common += [
            f"run.seed={self.seed}",
            f"trainer.max_steps={self.steps}",
            "run.resume=true",
            "suite=none",
        ]
        self._call(f"train {name}", "train", "experiment=mvt_cifar10", *common, *overrides)
        return run

    def untrained(self) -> Path:
        """A checkpoint of the first weights: one step that does not move them."""
        return self.train(
            "untrained", *LABELS, "trainer.max_steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-12"
        )

    def labels_of(self, run: Path) -> list[str]:
        """What trains on the clusters of a run's features."""
        features, clusters = self.out / "features" / run.name, self.out / "clusters" / run.name
        shards = self.data / "cifar10" / "cifar10-train-*.tar.gz"
        if not (clusters / "clusters.json").exists() or not (clusters / "done").exists():
            self._call(f"embed {run.name}", "vlm", "embed", f"run={run}", f"data={shards}", f"out={features}")
            name = f"seed{self.seed}_{run.name}"
            words = [f"features={features}", f"k={K}", f"out={clusters}", f"name={name}", f"seed={self.seed}"]
            self._call(f"cluster {run.name}", "vlm", "cluster", *words, "labels_per_sample=8")
            (clusters / "done").touch()
        return [f"data.train.labels=seed{self.seed}_{run.name}", f"objective.num_classes={K}"]

    def score(self, run: Path, *left_out: str) -> dict[str, float]:
        found = run / "vision.json"
        if not found.exists():
            suite = [f"suite.{s}={self.data}/cifar10/cifar10-{s}-*.tar.gz" for s in ("train", "test")]
            suite += [f"~suite.evaluators.{name}" for name in left_out]
            if "linear_probe" not in left_out:
                suite += ["suite.evaluators.linear_probe.l2=[1e-8,1e-6,1e-4]"]
            self._call(f"evaluate {run.name}", "vlm", "evaluate", f"run={run}", "suite=vision", *suite)
            (results,) = run.glob("evaluation/*/results.json")
            found.write_text(results.read_text())
        results = json.loads(found.read_text())["results"]
        return {name: results[name]["metrics"][METRICS[name]] for name in METRICS if name in results}

    def _call(self, stage: str, *words: str) -> None:
        start = time.perf_counter()
        log = self.out / f"{stage.replace(' ', '_')}.log"
        with log.open("w") as file:
            command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
            subprocess.run(
                command, stdout=file, stderr=file, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        with (self.out / "seconds.jsonl").open("a") as file:
            file.write(json.dumps({"stage": stage, "seconds": round(time.perf_counter() - start, 1)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["virtual", *SUPERVISED])
    given = parser.parse_args()
    road = Road(given.data.resolve(), given.out.resolve(), given.seed, given.steps)
    if "virtual" in given.only:
        run, start = road.untrained(), []
        print(run.name, road.score(run), flush=True)
        for number in range(1, given.rounds + 1):
            run = road.train(f"round{number}", *road.labels_of(run), *start)
            start = [f"init_from={run}"]
            print(run.name, road.score(run), flush=True)
    for name in (name for name in SUPERVISED if name in given.only):
        run = road.train(name, *LABELS, *SUPERVISED[name])
        left_out = ("knn", "linear_probe") if name.startswith("few") else ()
        print(run.name, road.score(run, *left_out), flush=True)


if __name__ == "__main__":
    main()
