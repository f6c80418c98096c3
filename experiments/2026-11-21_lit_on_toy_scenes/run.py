"""Alignment to a tower of images alone, beside CLIP from scratch, on toy scenes: every stage by its command.

    python run.py --data FOLDER --out FOLDER --seed 0

`--data` has the toy scenes in FOLDER/toy, and gets the labels. Stages that are done are not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

K, VISION_STEPS, STEPS, EVERY = 200, 400, 600, 50


class Road:
    """The runs of one seed."""

    def __init__(self, data: Path, out: Path, seed: int) -> None:
        self.data, self.out, self.seed = data, out / f"seed{seed}", seed
        self.out.mkdir(parents=True, exist_ok=True)

    def clip(self, name: str, *overrides: str) -> Path:
        every = [f"trainer.max_steps={STEPS}", f"evaluation.every_n_steps={EVERY}"]
        dropped = [f"~suite.evaluators.{name}" for name in ("choice_en", "choice_zh", "retrieval_en")]
        return self._train("toy", name, *every, *dropped, *overrides)

    def vision(self, name: str, labels: str, classes: int = K, *overrides: str) -> Path:
        own = [f"data.train.labels={labels}", f"objective.num_classes={classes}", "suite=none"]
        return self._train("mvt_toy", name, *own, f"trainer.max_steps={VISION_STEPS}", *overrides)

    def untrained(self) -> Path:
        """A checkpoint of the first weights: one step that does not move them."""
        still = ["trainer.max_steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-12"]
        return self.vision("untrained", "cls", 10_000, *still)

    def of_itself(self) -> Path:
        """A tower of clusters of its own features, twice, from first weights."""
        tower = self.untrained()
        for number in (1, 2):
            tower = self.vision(f"self{number}", self.clusters_of(tower))
        return tower

    def named(self) -> Path:
        """A tower of the names of single things: images alone, but labels that people gave."""
        only = ["objective.sample_rate=1.0", "objective.scale=16"]
        return self.vision("of_names", "cls", 192, *only)

    def clusters_of(self, run: Path) -> str:
        """The labels that the clusters of a run's features give."""
        name = f"lit_seed{self.seed}_{run.name}"
        features, clusters = self.out / "features" / run.name, self.out / "clusters" / run.name
        shards = self.data / "toy" / "train" / "*.tar"
        self._call(f"embed {run.name}", "vlm", "embed", f"run={run}", f"data={shards}", f"out={features}")
        words = [f"features={features}", f"k={K}", f"out={clusters}", f"name={name}", f"seed={self.seed}"]
        self._call(f"cluster {run.name}", "vlm", "cluster", *words)
        return name

    def _train(self, experiment: str, name: str, *overrides: str) -> Path:
        run = self.out / "runs" / name
        common = [f"paths.data={self.data}", f"paths.runs={run.parent}", f"run.name={name}"]
        common += [f"run.seed={self.seed}", "run.resume=true"]
        self._call(f"train {name}", "train", f"experiment={experiment}", *common, *overrides)
        return run

    def _call(self, stage: str, *words: str) -> None:
        done = self.out / f"{stage.replace(' ', '_')}.done"
        if done.exists():
            return
        start = time.perf_counter()
        with done.with_suffix(".log").open("w") as file:
            command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
            single = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(command, stdout=file, stderr=file, check=True, env=single)
        done.touch()
        with (self.out / "seconds.jsonl").open("a") as file:
            seconds = round(time.perf_counter() - start, 1)
            file.write(json.dumps({"stage": stage, "seconds": seconds}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", nargs="*", default=["self", "clip", "cls"])
    given = parser.parse_args()
    road = Road(given.data.resolve(), given.out.resolve(), given.seed)
    scratch = road.clip("scratch")
    towers = {
        "self": road.of_itself,
        "clip": lambda: road.vision("of_clip", road.clusters_of(scratch)),
        "cls": road.named,
    }
    for name in given.only:
        road.clip(f"lit_{name}", f"init_from={towers[name]()}", "freeze=image")


if __name__ == "__main__":
    main()
