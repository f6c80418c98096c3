"""The command `train` with kernels that add up in the same order each time, as far as there are such."""

import torch

from vlm.cli.train import main

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    main()
