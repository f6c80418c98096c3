"""What a command does not need, it does not wait for."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_shards import image_bytes, write_shards

RUN = """
import sys
from vlm.cli.{module} import main
sys.argv = {argv}
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("torch" in sys.modules)
"""


def imports_torch(module: str, *arguments: str) -> bool:
    """Whether a command, run to its end in this process, has imported torch."""
    code = RUN.format(module=module, argv=["command", *arguments])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("main", ["--help"]),
        ("main", ["shards", "--help"]),
        ("main", ["shards", "pack", "--help"]),
        ("main", ["evaluate", "--help"]),
        ("main", ["embed", "--help"]),
        ("main", ["interpolate", "--help"]),
        ("main", ["sweep", "--help"]),
        ("main", ["cluster", "--help"]),
        ("main", ["bench", "--help"]),
        ("main", ["bench", "loss", "--help"]),
        ("train", ["--help"]),
        ("train", ["experiment=toy", "--cfg", "job"]),
    ],
)
def test_help_does_without_torch(module: str, arguments: list[str]) -> None:
    assert not imports_torch(module, *arguments)


def test_packing_and_indexing_do_without_torch(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / f"{number}.png").write_bytes(image_bytes((number, 0, 0)))
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"number {number}")
    out = tmp_path / "shards"
    assert not imports_torch(
        "main", "shards", "pack", f"input={tmp_path}/pictures", f"out={out}", "workers=1"
    )
    assert len(list(out.glob("*.tar"))) == 1
    pattern = write_shards(tmp_path / "foreign", [3, 2])
    assert not imports_torch("main", "shards", "index", f"shards='{pattern}'")


def test_torchvision_imports_after_vlm_whoever_asks_first() -> None:
    for first in ("", "import torch", "import importlib.util; importlib.util.find_spec('torchvision')"):
        code = f"import vlm\n{first}\nimport torchvision.transforms"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
