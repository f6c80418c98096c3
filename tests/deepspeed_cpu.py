"""The command `train` with DeepSpeed on CPUs, for tests: Lightning and the project allow it on GPUs alone.

With KEYS in the environment, every rank writes the keys of its rows of each step into that folder.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
# Of this run of the tests: a process that is killed while it compiles leaves a lock that others wait for.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{tempfile.gettempdir()}/torch_extensions_{os.getppid()}")

import torch

from vlm.cli.train import main
from vlm.training.module import TrainingModule


def write_keys() -> None:
    training_step, folder = TrainingModule.training_step, Path(os.environ["KEYS"])

    def written_down(self: TrainingModule, batch: Any, batch_index: int) -> Any:
        (folder / f"{self.step:04d}_{self.global_rank}.json").write_text(json.dumps(batch["key"]))
        return training_step(self, batch, batch_index)

    TrainingModule.training_step = written_down  # type: ignore[method-assign]


def allow_cpu() -> None:
    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

    from vlm.training.engines.deepspeed import DeepSpeed

    DeepSpeed.check = lambda self, trainer: None  # type: ignore[method-assign]
    DeepSpeedStrategy.setup_environment = DDPStrategy.setup_environment  # type: ignore[method-assign]
    CPUAccelerator.get_parallel_devices = staticmethod(  # type: ignore[method-assign]
        lambda devices: [torch.device("cpu", number) for number in range(devices)]
    )


if __name__ == "__main__":
    if "KEYS" in os.environ:
        write_keys()
    if any("deepspeed" in word for word in __import__("sys").argv):
        allow_cpu()
    main()
