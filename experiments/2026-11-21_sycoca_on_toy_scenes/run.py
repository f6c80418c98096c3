"""From nothing the same steps of CLIP, CoCa, and what SyCoCa adds to it one by one, on toy scenes.

    python run.py --out FOLDER --seed 0

Every stage is a command of the project; runs that are done are not done again. Then `table.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ARMS = {
    "clip": ["objective=clip", "model=coca_toy", "model.text_decoder=null", "suite=toy"],
    "coca": ["objective=coca", "model=coca_toy", "suite=coca_toy"],
    "coca_attentive": ["objective.reconstruction_weight=0", "model=coca_toy", "suite=coca_toy"],
    "random": ["objective.masked_by=random"],
    "sycoca": [],
}

# Of every arm. English alone, and 16 patches, so that something is learned in four minutes.
COMMON = [
    "experiment=sycoca_toy",
    "data.train.captions=[json.caption_en]",
    "model.image.options.patch_size=8",
    "trainer.max_steps=300",
    "evaluation.every_n_steps=300",
    "checkpoint.every_n_steps=300",
    "~suite.evaluators.held_out_zh",
    "~suite.evaluators.test_zh",
    "~suite.evaluators.choice_zh",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", nargs="*", default=list(ARMS))
    parser.add_argument("overrides", nargs="*", default=[], help="of every run")
    given = parser.parse_args()
    out = given.out.resolve()
    runs = out / f"seed{given.seed}"
    common = [f"paths.data={out}/data", f"paths.runs={runs}", f"run.seed={given.seed}", "run.resume=true"]
    for name in given.only:
        words = [*COMMON, *common, f"run.name={name}", *ARMS[name], *given.overrides]
        call(runs, name, words)


def call(runs: Path, name: str, words: list[str]) -> None:
    done = runs / f"{name}.json"
    if done.exists():
        return
    runs.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with (runs / f"{name}.log").open("w") as log:
        command = [str(Path(sys.executable).parent / "train"), *words]
        subprocess.run(command, stdout=log, stderr=log, check=True, env=dict(os.environ))
    done.write_text(json.dumps({"seconds": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
