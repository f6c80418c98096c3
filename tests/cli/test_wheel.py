import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import tiny_overrides

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.long
def test_a_wheel_trains_and_evaluates_from_another_folder(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    run("-m", *build, str(REPOSITORY))
    wheel = next(tmp_path.glob("vlm-*.whl"))
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    installed = {"PYTHONPATH": str(tmp_path / "site")}
    where = run("-c", "import vlm, vlm.settings; print(vlm.settings.config_dir())", **installed)
    assert where.strip() == str(tmp_path / "site" / "vlm" / "configs")
    run("-m", "vlm.cli.train", *tiny_overrides(tmp_path), **installed)
    printed = run("-m", "vlm.cli.main", "evaluate", f"run={tmp_path}/runs/toy", **installed)
    assert "held_out_en" in printed
    assert (tmp_path / "runs/toy/evaluation/step_00000008/report.html").is_file()
