import subprocess
import sys
from pathlib import Path

from tiny import save_tiny

PROGRAM = """
import sys
import vlm
loaded = vlm.load(sys.argv[1])
image = __import__("PIL.Image").Image.new("RGB", (40, 30))
vector = loaded.model.encode_image(loaded.preprocess(image)[None])
assert vector.shape == (1, 8)
unwanted = {"hydra", "omegaconf", "lightning", "pytorch_lightning", "deepspeed", "transformers"}
print(*sorted(unwanted & {name.partition(".")[0] for name in sys.modules}))
"""


def test_load_needs_neither_hydra_nor_lightning(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == []
