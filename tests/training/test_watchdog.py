"""A run that hangs says where and ends; one that is slow goes on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import composed, tiny_overrides

from vlm.cli.train import train_from
from vlm.errors import ConfigError, HangError

TESTS = Path(__file__).parents[1]
PLACES = {
    "data": "data: the next batch (vlm.data.workers, line ",
    "encoders": "encoders (vlm.objectives.contrastive, line ",
    "loss": "loss: features of all ranks (vlm.objectives.contrastive, line ",
    "backward": "backward: gradients are averaged over all ranks (vlm.training.engines.engine, line ",
    "checkpoint": "checkpoint: the first rank writes, the others wait for it (vlm.training.callbacks, line ",
    "evaluation": "evaluation (vlm.training.callbacks, line ",
}
# The towers run once more before the first step, to count their operations.
STEPS = {"data": 0, "encoders": 1, "checkpoint": 3, "evaluation": 3}


def runs(folder: Path, *cases: str) -> tuple[dict[str, int], dict[str, str]]:
    """Exit codes, and what was said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "stalled_run.py"), str(folder), *cases],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), {case: (folder / f"{case}.txt").read_text() for case in cases}


@pytest.mark.long
def test_a_run_that_hangs_says_where_and_ends(toy: Path) -> None:
    codes, said = runs(toy, *PLACES)
    assert codes == dict.fromkeys(PLACES, HangError.exit_code), said
    for case, place in PLACES.items():
        report = (
            "HangError: this process: nothing was finished for 0.2 min (trainer.hang_minutes) since step "
            f"{STEPS.get(case, 2)}. Waiting in {place}"
        )
        pattern = re.escape(report) + r"\d+, in \w+\.[\w<>.]+\)\. Exit code 124; go on with run\.resume=true$"
        assert re.search(pattern, said[case], flags=re.MULTILINE), said[case]
        assert re.search(r"^Current thread .*\n  File .*watchdog\.py", said[case], flags=re.MULTILINE)
        assert re.search(r"^Thread .*\n  File .*stalled_run\.py.* in stalls$", said[case], flags=re.MULTILINE)


@pytest.mark.long
def test_a_slow_evaluation_is_no_hang(toy: Path) -> None:
    codes, said = runs(toy, "slow")
    assert codes == {"slow": 0}, said


def test_the_time_must_be_positive(toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.hang_minutes=0 must be above 0, or null"):
        train_from(composed(tiny_overrides(toy, "trainer.hang_minutes=0")))
