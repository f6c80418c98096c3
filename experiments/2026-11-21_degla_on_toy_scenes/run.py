"""From one CLIP the same budget of CLIP, NegCLIP, and DeGLA with and without distillation, on toy scenes.

    python run.py --out FOLDER --seed 0

Every stage is a command of the project; stages that are done are not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ARMS = {
    "clip": ["objective=clip", "data.train.negatives=null", "trainer.ema_decay=null"],
    "negclip": ["objective=negclip", "trainer.ema_decay=null"],
    "degla_without_distillation": ["objective.distillation_weight=0"],
    "degla": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", nargs="*", default=list(ARMS))
    parser.add_argument("overrides", nargs="*", default=[], help="of every stage, such as another model")
    given = parser.parse_args()
    out = given.out.resolve()
    runs = out / f"seed{given.seed}"
    common = [f"paths.data={out}/data", f"paths.runs={runs}", f"run.seed={given.seed}", "run.resume=true"]
    begin = ["experiment=toy", *common, "run.name=start", "evaluation.every_n_steps=800", *given.overrides]
    call(runs, "start", begin)
    start = [f"init_from={runs}/start"]
    for name in given.only:
        words = ["experiment=degla_toy", *common, f"run.name={name}", *start, *ARMS[name], *given.overrides]
        call(runs, name, words)


def call(runs: Path, name: str, words: list[str]) -> None:
    done = runs / f"{name}.json"
    if done.exists():
        return
    runs.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with (runs / f"{name}.log").open("w") as log:
        command = [str(Path(sys.executable).parent / "train"), *words]
        subprocess.run(command, stdout=log, stderr=log, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    done.write_text(json.dumps({"seconds": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
